"""The engines room: graphs -> TensorRT engines, each named by what made it. Still unfurnished: see the README."""
