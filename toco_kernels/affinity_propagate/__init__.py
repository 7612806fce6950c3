"""Class maps that spread along affinities: a transformer's attention, or what AffinityNet and IRN learn.

Both are products of the maps with a power of a transition matrix of N × N pixels, which is never made: with attention
as one more attention whose values are the maps, T² x as T (T x), and Sinkhorn's scaling as two vectors; with a random
walk as a sparse symmetric stencil, applied step by step.
"""

from .attention import propagate_attention
from .boxes import component_boxes
from .walk import random_walk

__all__ = ["component_boxes", "propagate_attention", "random_walk"]
