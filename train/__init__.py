"""The train room: data -> checkpoint; the only one that knows data sets and PyTorch Lightning."""
