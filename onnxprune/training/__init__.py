"""Training the weights of an .onnx in place: fine-tuning with labels, distillation without."""
