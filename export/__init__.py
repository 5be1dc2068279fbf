"""The export room: checkpoint -> bundle; PyTorch in, ONNX out. Reading a manifest imports neither."""
