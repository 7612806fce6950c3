"""Class-token contrast: crops that hold an object agree with the whole image, crops of background do not.

With `x_aj = <t_a, s_j> / τ` for the two teacher tokens a and the crops j of one image, and N_a the sum of e^x over the
crops flagged 0 plus 1e-4:

    loss = mean over images of  1 / (n + 1e-4) * 1/2 Σ_a [ Σ_{flag_j = 1} log((e^x_aj + N_a) / e^x_aj) + log(1 + N_a) ]

where n counts the flags that are 1. ToCo (CVPR 2023), equation 8, as its code computes it: `log(1 + N_a)` comes from a
`for … else` whose `else` always runs, and belongs to the published results.
"""

from .module import ClassTokenContrastLoss, update_ema_
from .op import class_token_contrast

__all__ = ["ClassTokenContrastLoss", "class_token_contrast", "update_ema_"]
