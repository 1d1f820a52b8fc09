"""wardround: hospitals meta-learn together; only differentially private model deltas leave.

This package is what the hospital and the coordinator both speak. It imports neither of them, and no Flower.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
