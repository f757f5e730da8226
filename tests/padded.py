"""Two rows of tokens of the ladder's models, the first padded on the left."""

import torch

IDS = torch.tensor([[0, 0, 9, 12, 7, 15], [5, 13, 5, 15, 4, 16]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
