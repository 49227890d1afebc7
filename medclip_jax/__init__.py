"""Pretraining, evaluation and export of radiology image-text models.

Tensors of three or more axes, and all logits, carry their shape as a suffix:

    B  examples of a batch (films or texts)
    N  images of a batch          M  texts of a batch
    H  height, pixels             W  width, pixels
    C  channels of a feature map  P  patches (height x width of a feature map)
    T  tokens                     L  attention heads
    F  width of a trunk feature   D  width of the joint space
    K  classes or prompts         S  sentences

Importing this package imports nothing else: `data_pipelines` uses its errors on
machines that have no JAX.
"""

__version__ = "0.1.0"
