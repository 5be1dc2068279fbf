"""The few pages of the Hugging Face Hub that pushing and pulling a model need, served from a folder.

The real client talks to it over HTTP, so that names, arguments, headers and errors are those of the installed
package. Repositories of other users than `user` answer 401, as the Hub does for what one may not see.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_of_the_tests"


@contextmanager
def hub_server(folder: Path) -> Iterator[str]:
    """The address of a Hub whose repositories are folders `user/name` under `folder`."""
    handler = type("Handler", (_Handler,), {"root": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self._chunks() if length is None else self.rfile.read(int(length))
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            is_wrong = "license: nonsense" in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of the known'}] if is_wrong else []
            self._json({"errors": errors, "warnings": []}, 400 if is_wrong else 200)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            told = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._json({"files": told})
        elif path.endswith("/commit/main"):
            self._commit(self._repository(path), [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": f"no such page {path}"}, 404)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _repository(self, path: str) -> Path:
        return self.root.joinpath(*path.removeprefix("/api/models/").split("/")[:2])

    def _create(self, asked: dict[str, Any]) -> None:
        repository = self.root / asked["organization"] / asked["name"]
        name = f"{asked['organization']}/{asked['name']}"
        told = {"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name}
        if repository.is_dir():
            self._json(told | {"error": "You already created this model repo"}, 409)
            return
        repository.mkdir(parents=True)
        (self.root / "created.json").write_text(json.dumps(asked))
        self._json(told)

    def _commit(self, repository: Path, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                path = repository / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "deletedFile":
                (repository / value["path"]).unlink()
        sha = _sha(repository)
        address = f"http://{self.headers['Host']}/user/{repository.name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": address})

    def _serve(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        is_api = path.startswith("/api/models/")
        repository = self._repository(path) if is_api else self.root.joinpath(*path.split("/")[1:3])
        if not (repository.is_dir() and repository.parent.name == "user"):
            self._json({"error": "Invalid username or password."}, 401, with_body)
        elif is_api and "/tree/" in path:
            self._json([
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in _files(repository).items()
            ], with_body=with_body)  # fmt: skip
        elif is_api:
            siblings = [{"rfilename": name} for name in _files(repository)]
            facts = {"id": f"user/{repository.name}", "sha": _sha(repository), "siblings": siblings}
            self._json(facts, with_body=with_body)
        else:
            data = (repository / path.split("/", 5)[5]).read_bytes()
            self._send(200, "application/octet-stream", data, with_body, _sha(repository))

    def _json(self, value: Any, code: int = 200, with_body: bool = True) -> None:
        self._send(code, "application/json", json.dumps(value).encode(), with_body, "")

    def _send(self, code: int, kind: str, data: bytes, with_body: bool, sha: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self.end_headers()
        if with_body:
            self.wfile.write(data)


def _files(repository: Path) -> dict[str, bytes]:
    return {
        path.relative_to(repository).as_posix(): path.read_bytes()
        for path in sorted(repository.rglob("*"))
        if path.is_file()
    }


def _sha(repository: Path) -> str:
    """What changes with the content, as a commit does."""
    return hashlib.sha1(repr(sorted(_files(repository).items())).encode()).hexdigest()
