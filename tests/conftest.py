"""What every test shares: one torch thread, so that the suite keeps its pace on a busy machine."""

import torch

torch.set_num_threads(1)
