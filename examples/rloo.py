"""RLOO: REINFORCE with a leave-one-out baseline (arXiv 2402.14740)."""

import torch

from vimpo.algorithms import PolicyGradient
from vimpo.objectives.common import group_mean


class Rloo(PolicyGradient):
    def advantage(self, batch):
        """A_i = r_i - mean of the other rewards of its group, on every token. -> [B, T]"""
        ones = torch.ones_like(batch.rewards)
        _, index = batch.groups.unique(return_inverse=True)
        size = ones.new_zeros(len(ones)).index_add(0, index, ones)[index]
        # r_i - (n m - r_i) / (n - 1) = n / (n - 1) (r_i - m), m the mean of all n
        advantage = size / (size - 1) * (batch.rewards - group_mean(batch.rewards, batch.groups))
        return advantage[:, None] * batch.mask

    def loss(self, logp, rows, share):
        """- mean_i A_i log pi(y_i), the log-probability of a whole response. -> scalar"""
        return -share.responses * (rows.advantage * logp * rows.mask).sum(1).mean()
