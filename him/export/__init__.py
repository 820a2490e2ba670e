"""Trained models in forms that other programs open: ONNX files, and folders of stock `transformers` classes."""
