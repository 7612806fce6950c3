"""SEAM's pixel correlation module: class maps revised by how similar pixels are.

With g_ij = relu(cos(f_i, f_j)), the result of class c at pixel j is Σ_i m_ci g_ij / Σ_i g_ij: an attention whose
weights are cosines. SEAM (CVPR 2020), and under PPC (CVPR 2022).
"""

from .maps import correlation_maps
from .op import pixel_correlation

__all__ = ["correlation_maps", "pixel_correlation"]
