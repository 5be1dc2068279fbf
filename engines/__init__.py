"""The engines room: graphs -> TensorRT engines, each named by what made it. Start at `build.py`."""
