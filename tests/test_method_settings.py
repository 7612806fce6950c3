"""Settings of methods: every wrong value is named, with what it must be."""

from dataclasses import fields

import pytest

from toco_kernels.methods import Optimisation, PPCConfig, Quirks, Stage, TKPPCLConfig, ToCoConfig

NAN, INF = float("nan"), float("inf")
COUNT = (0, -1, 1.5, True, "2", None)
SHARE = (-0.1, 1.1, NAN, "1", None)
POSITIVE = (0, -1.0, NAN, INF, "1", None)
WEIGHT = (-1, NAN, INF, "1", None)
FLAG = (1, "no", None)
WORD = ("other", None, 3)

SHARED = {
    "num_classes": (1, *COUNT),
    "crop_size": COUNT,
    "batch_size": COUNT,
    "optimisation": (None, {"steps": 10}),
    "mean": ((1, 2), 0.5, (1, 2, NAN), (1, 2, "3"), None),
    "std": ((1, 2), 0.5, (1, 2, 0), (1, 2, -3), None),
}
SCALES = ((), (0,), (1.0, -1.0), (NAN,), ("1",), 1.0, None)

BAD = {
    Optimisation: {
        "steps": COUNT,
        "lr": WEIGHT,
        "head_factor": WEIGHT,
        "weight_decay": WEIGHT,
        "betas": ((0.9,), 0.9, (0.9, 1.0), (-0.1, 0.9), None),
        "warmup_steps": (-1, 0.5, None),
        "warmup_ratio": SHARE,
        "power": WEIGHT,
        "restart_after_warmup": FLAG,
    },
    Stage: {
        "until": (-1, 0.5, "end"),
        "weights": ({"clss": 1.0}, {"cls": -1.0}, {"cls": NAN}, {"cls": "1"}, ["cls"], None),
        "labels_from": WORD,
    },
    Quirks: dict.fromkeys([field.name for field in fields(Quirks)], FLAG),
    ToCoConfig: SHARED
    | {
        "high": SHARE,
        "low": SHARE,
        "background": SHARE,
        "temperature": POSITIVE,
        "stages": ([], (Stage(3, {}),), (Stage(None, {}), Stage(None, {})), (3, None), None),
        "local_crops": COUNT,
        "local_size": COUNT,
        "momentum": SHARE,
        "cam_scales": SCALES,
        "aux_layer": (0.5, None),
        "decoder_width": COUNT,
        "projection": ((8, 8), (8, 8, 0), 8, None),
        "max_classes": (0, 1.5),
        "energy_weight": WEIGHT,
        "sigma_rgb": POSITIVE,
        "sigma_xy": POSITIVE,
        "scale_factor": POSITIVE,
        "quirks": (None, {}),
    },
    PPCConfig: SHARED
    | {
        "variant": WORD,
        "weights": ({"intro": 1.0}, {"intra": -1.0}, {"intra": INF}, ["intra"], None),
        "background_score": SHARE,
        "background": SHARE,
        "prototype_share": COUNT,
        "temperature": POSITIVE,
        "contrast_from": (-1, 0.5, None),
        "second_size": COUNT,
        "ecr_share": (0, *SHARE),
        "saliency_threshold": SHARE,
        "saliency_mix": SHARE,
        "dropout": (1, *SHARE),
        "projection": COUNT,
        "correlation": ((8, 8), (8, 8, 0), 8, None),
        "published_prototypes": FLAG,
        "optimiser": WORD,
        "cam_scales": SCALES,
    },
    TKPPCLConfig: SHARED
    | {
        "k": COUNT,
        "mean_steps": (-1, 0.5, None),
        "threshold": (0.4, 1, NAN, "1", None),
        "form": WORD,
        "weight": WEIGHT,
        "contrast_background": FLAG,
        "conditioning": WORD,
        "dropout": (1, *SHARE),
        "trained_blocks": (-1, 0.5),
        "frozen_steps": (-1, 0.5, None),
        "label_size": (0, 0.5),
    },
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_values_are_named(kind):
    assert {*BAD[kind]} == {field.name for field in fields(kind)}, "every setting is here"
    fine = {Optimisation: {"steps": 10}, Stage: {"until": None, "weights": {}}}.get(kind, {})
    kind(**fine)
    for name, values in BAD[kind].items():
        for value in values:
            with pytest.raises((TypeError, ValueError), match=rf"^{name}\b.* must .*, got ") as error:
                kind(**fine | {name: value})
            parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else []
            given = [getattr(part, "until", part) for part in (value, *parts)]
            was = str(error.value).partition(", got ")[2]
            assert any(x in was for part in given for x in (str(part), type(part).__name__)), str(error.value)


def test_lists_of_json_are_fine():
    """And integers where numbers are meant."""
    assert Optimisation(10, lr=1, betas=[0.9, 0.99]).lr == 1
    assert PPCConfig(correlation=[4, 8, 12], cam_scales=[1], mean=[0, 0, 0], std=[1, 1, 1]).projection == 128
