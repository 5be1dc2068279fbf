"""The verbs of the command line, by what they are for; `runtime.cli` lists them.

Each builds one options record and makes one call. This is the one place of the runtime that looks at all rooms, and
only when a command runs: so `e2crf sample` on a small machine never loads torch.
"""
