"""From the winner to a bundle that serves without torch: ONNX, lower precisions, card, checksums, signature.

`pack` is the one way to a bundle, for a network of this project and for any other; `bundle` reads and verifies it.
"""
