"""The passes: one file and one public function each; import them as ``onnxprune.passes``."""
