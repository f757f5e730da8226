"""Assumptions of `python -m vimpo plan`, which affect estimates but no run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vimpo.config.types import Count, Name, Strict

Share = Annotated[float, Field(gt=0, le=1)]


class Planning(Strict):
    """Read only by `plan`. The rest is in vimpo/planning/devices.csv or follows from the task."""

    device: Name | None = Field(
        None,
        description="a row of vimpo/planning/devices.csv; default: cpu-core or h100, by "
        "runtime.device",
    )
    prompt_tokens: Count | None = Field(
        None, description="mean tokens per prompt; default: the longest chain's"
    )
    response_tokens: Count | None = Field(
        None, description="mean tokens per response; default: the longest chain's"
    )
    longest_prompt: Count | None = Field(
        None, description="tokens of the longest prompt, for memory; default: prompt_tokens"
    )
    decoded_together: Count | None = Field(
        None, description="sequences that a device decodes at once; default: all of its share"
    )
    train_utilisation: Share | None = Field(
        None, description="share of the device's peak while training; default: the device's row"
    )
    decode_utilisation: Share | None = Field(
        None, description="share of peak or bandwidth while decoding; default: the device's row"
    )
    layer_seconds: float | None = Field(
        None, ge=0, description="overhead per layer and decoding step; default: the device's row"
    )
    engine_layer_seconds: float = Field(
        2e-5, ge=0, description="the same if runtime.sampler is vllm: captured graphs, no Python"
    )
    parallel_efficiency: Share = Field(
        0.85, description="share of linear speed-up that several processes achieve"
    )
    startup_seconds: float = Field(
        15.0, ge=0, description="imports, loading and the scheduler, per process of a job"
    )
