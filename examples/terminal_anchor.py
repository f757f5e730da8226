"""A rung between Dr. GRPO and VIMPO: the value loss without its KL, and without an actor.

    L = mean_i 1/2 [ beta sum_t (log pi - log pi_ref) - (R_i - mean_g) ]^2

At the first step, where pi = pi_ref, its gradient is Dr. GRPO's times beta; what it adds is that a
response whose log-ratio has reached its target is let go. With `normalize_std` the target is GRPO's
advantage.
"""

from vimpo.algorithms import PolicyGradient
from vimpo.objectives.grpo import group_advantage


class TerminalAnchor(PolicyGradient):
    def __init__(self, config, beta, normalize_std=False):
        super().__init__(config)
        self.beta, self.normalize_std = beta, normalize_std

    def advantage(self, batch):
        """R_i - mean_g, on every token. -> [B, T]"""
        target = group_advantage(batch.rewards, batch.groups, self.normalize_std)
        return target[:, None] * batch.mask

    def loss(self, logp, rows, share):
        """Its gradient pulls beta times a response's summed log-ratio to the target. -> scalar"""
        implied = self.beta * ((logp - rows.ref_logp) * rows.mask).sum(1)
        # Every token of a row holds the target.
        target = (rows.advantage * rows.mask).sum(1) / rows.mask.sum(1)
        return share.responses * 0.5 * (implied - target).square().mean()
