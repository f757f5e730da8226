"""Typed configuration, the only home of defaults; this is its contents page.

A study is one YAML file, validated against :class:`Study`. Everything that a rule or a command
needs is resolved from it, and unknown keys are refused. Each module named below holds one section;
the rest of the package imports from here. None of them imports torch or Snakemake, so a study of
ten thousand cells is checked in moments.

Symbols are those of the VIMPO paper (arXiv 2606.20008): beta scales the log-ratio, c_A is
``actor_coef``, lambda is ``lam``, G is ``group_size``.
"""

from __future__ import annotations

from vimpo.config.algorithms import (
    ALGORITHMS,
    AlgorithmConfig,
    Beta,
    Capacity,
    Continuations,
    CorrectedGRPOConfig,
    CriticPretraining,
    DrGRPOConfig,
    EntropyConfig,
    GRPOConfig,
    GSPOConfig,
    OracleConfig,
    OwnConfig,
    PolicyUpdate,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
    TBRMConfig,
    VimpoConfig,
    VinePPOConfig,
    beta_number,
)
from vimpo.config.asked import (
    Benchmark,
    GymBenchmark,
    OwnBenchmark,
    RealBenchmark,
    RegisteredBenchmark,
    TextBenchmark,
)
from vimpo.config.decoders import Decoder
from vimpo.config.grid import Cell, CellConfig, GridBlock, cell_digest
from vimpo.config.hypotheses import Hypothesis
from vimpo.config.judging import Claims, Evaluation, Probes, Statistics
from vimpo.config.load import dump_yaml, load_study, setting_differences, study_schema
from vimpo.config.model_paths import check_model_path
from vimpo.config.models import LADDER, NO_RESULT, Lora, ModelSpec, Pretrain
from vimpo.config.noise import Noise
from vimpo.config.sources import DataSource, GymSource, ProblemSource
from vimpo.config.study import Study
from vimpo.config.task import ChainTask, DatasetTask, GymTask, TaskConfig, TextTask
from vimpo.config.training import PLACEMENT, Collapse, Runtime, Train
from vimpo.config.types import Strict, digest, require
from vimpo.config.watching import Validation
from vimpo.errors import ConfigError
