"""DICOM files -> small de-identified images, or a refusal that names the tag or the decoder.

- attributes.py: which attributes may be read, and their values
- identity.py: whose it is; select.py: what kind of image it is, and whether `[select]` takes it
- header.py: a file -> the few of them that count, parsed once and checked
- pixels.py: attributes and pixel data -> uint16 images as a radiologist would see them, small
- deidentify.py: the two together: a file -> keyed hashes, images and the scanner's maker, or a
  `Rejection`; nothing else comes out
"""

from __future__ import annotations

from wardround_client.intake.dicom.deidentify import instance_of
from wardround_client.intake.dicom.identity import series_of

__all__ = ["instance_of", "series_of"]
