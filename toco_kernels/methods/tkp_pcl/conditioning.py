"""What ViT-PCM puts between backbone and classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...common.errors import bad_value


class HVBiLSTM(nn.Module):
    """Tokens that have read their row and their column: a bidirectional LSTM along every row, another along every
    column, and their outputs side by side.

    Args:
        width: D, channels in and out: a quarter for each direction of each LSTM.
        dropout: of the grid, and again of what each LSTM reads.

    Computed in the precision of its parameters, under autocast too: float32 there.

    Source: ViT-PCM (Rossetti et al., ECCV 2022).
    """

    def __init__(self, width: int, dropout: float = 0.2):
        super().__init__()
        if width % 4:
            raise bad_value("width", "be a multiple of 4 for hv_bilstm", width)
        self.dropout = dropout
        self.rows, self.columns = (nn.LSTM(width, width // 4, batch_first=True, bidirectional=True) for _ in range(2))

    def forward(
        self,
        tokens: Tensor,  # (B, h * w, D)
        grid: tuple[int, int],
    ) -> Tensor:  # (B, h * w, D)
        """The conditioned tokens."""
        with torch.autocast(tokens.device.type, enabled=False):
            x = tokens.to(self.rows.weight_ih_l0.dtype).unflatten(1, grid)  # (B, h, w, D)
            x = F.dropout(x, self.dropout, self.training)
            along_rows = self._read(self.rows, x)
            along_columns = self._read(self.columns, x.transpose(1, 2)).transpose(1, 2)
        return torch.cat([along_rows, along_columns], dim=3).flatten(1, 2).to(tokens.dtype)

    def _read(self, lstm: nn.LSTM, x: Tensor) -> Tensor:  # (B, lines, length, D) -> (B, lines, length, D / 2)
        lines = F.dropout(x, self.dropout, self.training).flatten(0, 1)
        return lstm(lines)[0].unflatten(0, x.shape[:2])

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"dropout={self.dropout}"
