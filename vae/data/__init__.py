"""Datasets as raw arrays: one call from a source string to arrays plus a transform.

`load` returns a `Dataset` of small raw arrays (uint8 where the source is uint8). `prepare` turns
one raw example into one model input inside the jitted step, so that a batch costs no host work and
fresh binarisation needs no extra memory.
"""

from vae.data.dataset import Dataset, load
from vae.data.stream import Stream, Window
from vae.data.transform import Examples, Transform, prepare

__all__ = ["Dataset", "Examples", "Stream", "Transform", "Window", "load", "prepare"]
