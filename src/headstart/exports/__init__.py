"""Files of a model for other runtimes, and the certificate that they agree with the model.

Read network.py (the network as a module with one output), pixel_graph.py (preprocessing as an ONNX
graph), onnx_file.py (both as one ONNX file with its description), int8_graph.py (the same with
8-bit integers), openvino_file.py, torch_file.py, check_images.py (images of odd kinds) and
certificate.py (predictions of the file compared with those of the model).
"""
