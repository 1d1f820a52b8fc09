"""DICOM files -> small de-identified images, or a refusal that names the tag or the decoder.

- attributes.py: which attributes may be read, and their values
- header.py: a file -> the few of them that count, parsed once and checked
- pixels.py: attributes and pixel data -> uint16 images as a radiologist would see them, small
- deidentify.py: the two together: a file -> keyed hashes, images and the scanner's maker, or a
  `Rejection`; nothing else comes out
"""

from __future__ import annotations

from wardround_client.intake.dicom.deidentify import instance_of

__all__ = ["instance_of"]
