"""Two classic recipes, from an .onnx with random weights to a small one: `make examples`."""
