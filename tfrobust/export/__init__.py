"""From a trained classifier to the file that ships: `.keras` or TensorFlow Lite, checked.

A file that answers differently from the network that was evaluated makes every number on its card
worthless, so each export runs the written bytes on the interpreter and compares logits:

    exported = tr.export.tflite(small, "model.tflite", quantize="int8", calibration=x_train[:300])
    print(exported)                                  # size, parity, and how to feed the file
    logits = tr.export.predict("model.tflite", x)    # pixels in [0, 1] in, float logits out

A pruned network gets `sparse=True`; `Exported.gzip` is what a file weighs after compression.

Files take one image per call (static shapes, which phone delegates ask for). Robust accuracy of a
quantised file is measured by attacking its Keras twin and replaying the images with `predict`.
"""

from tfrobust.export.archive import keras_file
from tfrobust.export.convert import tflite
from tfrobust.export.interpreter import latencies, latency, predict
from tfrobust.export.result import Exported

__all__ = ["Exported", "keras_file", "latencies", "latency", "predict", "tflite"]
