"""The neighbours and the controls, against loops over the numbers and known gradients."""

import math

import pytest
import torch

from vimpo.algorithms import Setup, Share, make_algorithm, make_batch
from vimpo.config import ALGORITHMS, Cell, ConfigError, Noise, load_study
from vimpo.config.task import DatasetTask
from vimpo.models.networks import chain_tokenizer
from vimpo.objectives.grpo import corrected_advantage
from vimpo.objectives.steps import shuffled, step_credit
from vimpo.objectives.tbrm import trajectory_residual
from vimpo.tasks.chain import Problem, grade_steps, training_problems
from vimpo.tasks.steps import graded_tokens, token_spans

NEW = [
    "grpo_kl",
    "dapo",
    "grpo_corrected",
    "dr_grpo",
    "gspo",
    "rloo",
    "reinforce_pp",
    "tbrm",
    "vineppo",
    "oracle",
    "oracle_shuffled",
    "entropy",
]
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
GROUPS = [7, 7, 7, 3, 3, 3]
LENGTHS = [3, 1, 4, 2, 4, 3]
WIDTH = 4
SETUP = Setup(max_response=9, noise=Noise(mode="rollout", rate=0.1))


@pytest.fixture
def batch():
    """Six responses after a small update; float64."""
    random = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1.0] * n + [0.0] * (WIDTH - n) for n in LENGTHS]).double()

    def draw(scale):
        return -0.1 - scale * torch.rand(mask.shape, generator=random).double()

    found = make_batch(REWARDS, torch.tensor(GROUPS), mask)
    logp = draw(2.0)
    return found.with_(
        rewards=found.rewards.double(),
        baseline=found.baseline.double(),
        logp=logp,
        old_logp=logp + 0.5 * (torch.rand(mask.shape, generator=random).double() - 0.5),
        ref_logp=draw(2.0),
        entropy=-draw(1.0),
        start=5 + draw(1.0)[:, 0],
        draws=torch.rand(mask.shape, generator=random),
    )


def made(name, **changes):
    return make_algorithm(ALGORITHMS[name].model_copy(update=changes), SETUP)


def centred():
    """R - mean of the group, by a loop."""
    mean = {g: sum(r for r, h in zip(REWARDS, GROUPS, strict=True) if h == g) / 3 for g in GROUPS}
    return [r - mean[g] for r, g in zip(REWARDS, GROUPS, strict=True)]


def clipped(ratio, a, low, high):
    worst = max(-a * ratio, -a * min(max(ratio, 1 - low), 1 + high))
    return min(worst, -10 * a) if a < 0 else worst


def tokens(batch):
    """(i, [log-ratio of each token]) of every response."""
    gap = (batch.logp - batch.old_logp).tolist()
    return [(i, gap[i][:n]) for i, n in enumerate(LENGTHS)]


def loss_of(algorithm, batch):
    batch = batch.with_(advantage=algorithm.advantage(batch))
    return algorithm.loss(batch.logp, batch, Share(1.0, 1.0)), batch


# --- losses, by loops -----------------------------------------------------------------------------


def test_rloo(batch):
    advantage = [1.5 * c for c in centred()]  # n / (n - 1) of three
    expected = [clipped(math.exp(sum(gaps)), advantage[i], 0.2, 0.2) for i, gaps in tokens(batch)]
    loss, after = loss_of(made("rloo"), batch)
    assert float(loss) == pytest.approx(sum(expected) / 6, abs=1e-6)
    assert after.advantage[0].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.0])


def test_the_gradient_of_rloo_is_that_of_reinforce(batch):
    batch = batch.with_(old_logp=batch.logp)
    algorithm, logp = made("rloo"), batch.logp.clone().requires_grad_()
    batch = batch.with_(advantage=algorithm.advantage(batch))
    algorithm.loss(logp, batch, Share(1.0, 1.0)).backward()
    assert torch.allclose(logp.grad, -batch.advantage / 6, atol=1e-9)


def test_gspo(batch):
    std = math.sqrt((2 * (1 / 3) ** 2 + (2 / 3) ** 2) / 2) + 1e-6
    expected = [
        clipped(math.exp(sum(gaps) / len(gaps)), centred()[i] / std, 3e-4, 4e-4)
        for i, gaps in tokens(batch)
    ]
    loss, _ = loss_of(made("gspo"), batch)
    assert float(loss) == pytest.approx(sum(expected) / 6, abs=1e-6)


def test_dr_grpo(batch):
    expected = sum(
        clipped(math.exp(gap), centred()[i], 0.2, 0.2) for i, gaps in tokens(batch) for gap in gaps
    )
    loss, _ = loss_of(made("dr_grpo"), batch)
    assert float(loss) == pytest.approx(expected / 6 / SETUP.max_response, abs=1e-6)


@pytest.mark.parametrize("group_baseline", [False, True])
def test_reinforce(batch, group_baseline):
    signal = centred() if group_baseline else REWARDS
    spread = [x for x, n in zip(signal, LENGTHS, strict=True) for _ in range(n)]
    mean = sum(spread) / len(spread)
    std = math.sqrt(sum((x - mean) ** 2 for x in spread) / (len(spread) - 1) + 1e-8)
    expected = sum(
        clipped(math.exp(gap), (signal[i] - mean) / std, 0.2, 0.2)
        for i, gaps in tokens(batch)
        for gap in gaps
    )
    loss, _ = loss_of(made("reinforce_pp", group_baseline=group_baseline), batch)
    assert float(loss) == pytest.approx(expected / len(spread), abs=1e-6)


def test_tbrm(batch):
    ratio = (batch.logp - batch.ref_logp).tolist()
    residuals = [
        0.02 * (float(batch.start[i]) + sum(ratio[i][:n])) - REWARDS[i]
        for i, n in enumerate(LENGTHS)
    ]
    loss, after = loss_of(made("tbrm"), batch)
    assert float(loss) == pytest.approx(sum(e * e for e in residuals) / 12, abs=1e-6)
    assert after.advantage[:, 0].tolist() == pytest.approx([-e for e in residuals])


def test_the_residual_of_tbrm_is_the_sum_of_bellman_residuals():
    """Q = beta z, V = beta logsumexp z; r_t = R at the end + beta log pi_ref; V = 0 after it."""
    z = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    taken, ref, beta, reward = [1, 4, 0], torch.tensor([[-0.3, -1.0, -0.7]]).double(), 0.3, 1.0
    value = [beta * float(z[0, t].logsumexp(0)) for t in range(3)] + [0.0]
    total = sum(
        beta * float(z[0, t, a]) - beta * float(ref[0, t]) - value[t + 1]
        for t, a in enumerate(taken)
    )
    logp = z.log_softmax(-1)[0, range(3), taken][None]
    found = trajectory_residual(
        logp, ref, z[:, 0].logsumexp(-1), torch.tensor([reward]).double(), torch.ones(1, 3), beta
    )
    assert float(found) == pytest.approx(total - reward, abs=1e-9)


def test_grpo_corrected(batch):
    advantage = made("grpo_corrected").advantage(batch)[:, 0].tolist()
    q = (1 / 3 * 2 - 0.1) / 0.8
    scale = 0.8 * math.sqrt(q * (1 - q))
    assert advantage == pytest.approx([(1 / 3) / scale, -(2 / 3) / scale, (1 / 3) / scale, 0, 0, 0])
    own = made("grpo_corrected", false_positive=0.0, false_negative=0.0).advantage(batch)
    assert float(own[0, 0]) == pytest.approx(1 / 3 / math.sqrt(2 / 9))


def test_the_correction_is_unbiased_over_flips():
    """Over all flips of one group, the estimated rewards' differences are the clean ones."""
    clean, p, n = [1.0, 1.0, 0.0], 0.1, 0.3
    total = torch.zeros(3)
    for flips in range(8):
        flip = [(flips >> i) & 1 for i in range(3)]
        chance = math.prod(
            (f * r + (1 - f) * (1 - r))
            for f, r in zip(flip, [n if c else p for c in clean], strict=True)
        )
        noisy = torch.tensor([abs(c - f) for c, f in zip(clean, flip, strict=True)])
        total += chance * (noisy - noisy.mean()) / (1 - p - n)
    assert total.tolist() == pytest.approx([1 / 3, 1 / 3, -2 / 3], abs=1e-6)
    equal = corrected_advantage(torch.ones(3), torch.zeros(3), p, n)
    assert equal.tolist() == [0, 0, 0]


def test_the_entropy_minimiser_reads_no_reward(batch):
    algorithm = made("entropy")
    advantage = algorithm.advantage(batch)
    assert torch.equal(advantage, algorithm.advantage(batch.with_(rewards=1 - batch.rewards)))
    assert torch.equal(advantage, (batch.logp + batch.entropy) * batch.mask)


def test_the_entropy_minimiser_follows_the_gradient_of_entropy():
    z = torch.tensor([0.3, -1.0, 0.8, 0.1]).double().requires_grad_()
    logp = z.log_softmax(0)
    entropy = -(logp.exp() * logp).sum()
    exact = torch.autograd.grad(entropy, z, retain_graph=True)[0]
    advantage = (logp + entropy).detach()
    sampled = torch.autograd.grad(-(logp.exp().detach() * advantage * logp).sum(), z)[0]
    assert torch.allclose(exact, sampled)


# --- the oracle -----------------------------------------------------------------------------------

TEXTS = {
    "12+9=21;21+5=26#26": 1.0,
    "12+9=11;11+5=16#16": 0.0,
    "12+9=21;21+5=27#27": 0.0,
    "12+9=21": 0.0,
}


@pytest.fixture(scope="module")
def graded():
    """steps, grades and mask of TEXTS as answers to 12+9+5."""
    tokenizer, problem, rows = chain_tokenizer(), Problem("12+9+5=", "26"), []
    for text, right in TEXTS.items():
        ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        rows.append(graded_tokens(grade_steps(problem, text), token_spans(tokenizer, ids), right))
    width = max(len(index) for index, _ in rows)

    def padded(values, fill):
        return torch.tensor([v + [fill] * (width - len(v)) for v in values])

    mask = padded([[1.0] * len(index) for index, _ in rows], 0.0)
    return padded([i for i, _ in rows], 0), padded([g for _, g in rows], 0.0), mask


def test_every_token_has_a_step(graded):
    steps, grades, _ = graded
    # a separator opens the step that follows it; EOS is a step of its own
    assert steps[0].tolist() == [0] * 7 + [1] * 8 + [2] * 3 + [3]
    assert grades[0].tolist() == [1] * 19
    assert grades[1].tolist() == [0] * 7 + [1] * 11 + [0]
    # all steps of the last are right, but it ends too early
    assert steps[3, :8].tolist() == [0] * 7 + [1]
    assert grades[3, :8].tolist() == [1] * 7 + [0]


def test_credit_is_the_grade_less_its_mean_up_to_the_first_wrong_step(graded):
    steps, grades, mask = graded
    credit = step_credit(steps, grades, mask)
    # step 0: three of four are right; step 1: of these, one; steps 2 and 3: one, alone
    assert credit[0].tolist() == pytest.approx([0.25] * 7 + [2 / 3] * 8 + [0] * 4)
    assert credit[1].tolist() == pytest.approx([-0.75] * 7 + [0] * 12)
    assert credit[2].tolist() == pytest.approx([0.25] * 7 + [-1 / 3] * 8 + [0] * 4)
    assert credit[3, :8].tolist() == pytest.approx([0.25] * 7 + [-1 / 3])
    half = step_credit(steps, grades, mask, 0.5)
    assert half[1].tolist() == pytest.approx([-0.375] * 7 + [0] * 12)
    assert torch.equal(half.clamp(min=0), credit.clamp(min=0))


def test_no_disagreement_is_no_credit(graded):
    steps, grades, mask = graded
    for grade in (0.0, 1.0):
        assert not step_credit(steps, torch.full_like(grades, grade), mask).any()


def test_shuffling_keeps_the_numbers_of_a_response(graded):
    steps, grades, mask = graded
    credit, draws = step_credit(steps, grades, mask), torch.rand(mask.shape)
    moved = shuffled(credit, mask, draws)
    assert not torch.equal(moved, credit)
    assert torch.equal(moved, shuffled(credit, mask, draws))
    for a, b, m in zip(credit, moved, mask.bool(), strict=True):
        assert a[m].sort().values.tolist() == b[m].sort().values.tolist()
        assert not b[~m].any()


# --- in the loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEW)
def test_one_step_in_the_loop(make_trainer, name):
    trainer = make_trainer(name, warmup_steps=0)
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    row = trainer.step(0)
    assert all(math.isfinite(row[key]) for key in ("loss", "grad_norm", "advantage_std"))
    assert row["grad_norm"] > 0
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["tbrm", "oracle_shuffled", "gspo", "dr_grpo"])
def test_micro_batches_and_chunks_change_nothing(make_trainer, name):
    rows = [
        make_trainer(name, warmup_steps=0, micro_batch=size, runtime={"logit_chunk": chunk}).step(0)
        for size, chunk in ((None, None), (7, None), (None, 16))
    ]
    for key in ("loss", "grad_norm", "advantage_std"):
        for row in rows[1:]:
            assert row[key] == pytest.approx(rows[0][key], rel=1e-4, abs=1e-7), key


def test_the_shuffle_is_a_function_of_seed_and_step(make_trainer):
    first, again = (
        make_trainer("oracle_shuffled").collector.collect(0).batch.draws for _ in range(2)
    )
    other = make_trainer("oracle_shuffled").collector.collect(1).batch.draws
    assert torch.equal(first, again)
    assert not torch.equal(first[:, :3], other[:, :3])


# --- refusals -------------------------------------------------------------------------------------


def test_an_oracle_needs_a_task_that_grades_steps(make_trainer, monkeypatch):
    study = {
        "task": {"kind": "dataset", "datasets": [{"path": "some/data"}]},
        "sizes": {"real": {"path": "some/model"}},
        "grid": {"algorithms": ["oracle"], "sizes": ["real"]},
    }
    with pytest.raises(ConfigError, match=r"algorithms\.oracle: reads grades.*'dataset'.*allowed"):
        load_study(study)
    study["grid"]["algorithms"] = ["grpo"]
    assert isinstance(load_study(study).task, DatasetTask)


@pytest.mark.parametrize(
    ("noise", "entry"), [(0.5, {}), (0.25, {"false_positive": 0.8, "objective": "grpo_corrected"})]
)
def test_a_correction_needs_rewards_that_say_something(noise, entry):
    study = {"algorithms": {"grpo_corrected": entry}}
    study["grid"] = {"algorithms": ["grpo_corrected"], "noise": [noise]}
    with pytest.raises(ConfigError, match=r"grpo_corrected cannot correct.*allowed: a sum below 1"):
        load_study(study)


def test_one_response_a_prompt_suits_what_compares_none():
    for name, objective in ALGORITHMS.items():
        data = {"train": {"group_size": 1}, "grid": {"algorithms": [name]}}
        if objective.needs_group:
            with pytest.raises(ConfigError, match="no group to compare with"):
                load_study(data)
        else:
            load_study(data)


def test_a_wide_first_operand_leaves_other_digests_alone():
    cell = Cell("grpo", "xs", "0", 1)
    plain, wide = load_study({}), load_study({"task": {"first_largest": 99}})
    assert "first_largest" not in plain.task.model_dump()
    assert wide.cell_digest(cell) != plain.cell_digest(cell)
    assert wide.task.problem_space(2) == 11 * plain.task.problem_space(2)
    firsts = {
        int(p.prompt.split("+")[0].split("-")[0]) for p in training_problems(wide.task, 1, 0, 60)
    }
    assert max(firsts) > 50
