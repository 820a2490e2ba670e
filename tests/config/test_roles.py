"""Roles of settings: what is derived from them, name by name."""

from dataclasses import fields

import pytest

from him.config.options import OPTIONS, SPECS, only_roles, with_role
from him.config.options.option import ROLES, option
from him.config.resolve import pretraining_settings

GENERATION = "num_beams length_penalty no_repeat_ngram_size no_repeat_words temperature top_k top_p max_new_tokens"
COMPRESSION = "pruning_amount pruning_method fine_tune_epochs fine_tune_learning_rate fine_tune_distillation_weight"
# What was listed by hand once. A setting that is new gets its place in these by its roles; whoever adds one reads here
# what they bring about.
MAY_CHANGE = (
    "num_epochs max_steps early_stopping_epochs save_every_steps save_every_minutes keep_checkpoints device "
    "num_threads attention_dir attention_examples bertscore_model bertscore_samples cache_dir compress " + COMPRESSION
)
DERIVED = {
    "shape": (
        lambda: with_role("shape"),
        "num_encoder_layers embed_dim num_heads dim_feedforward layer_heads layer_feedforward conv_kernel_size "
        "norm_first layer_norm_eps activation positions lexical_features copy_head max_seq_len",
    ),
    "may change when a run goes on": (
        lambda: with_role("budget", "machine", "report", "cache", "compression"),
        MAY_CHANGE,
    ),
    "may move when a run goes on": (
        lambda: set(with_role("path")) - set(MAY_CHANGE.split()),
        "output_dir run_name train_file validation_file pretrain_files corpus_dir init_from teacher tokenizer",
    ),
    "what a pretraining depends on": (
        pretraining_settings,
        "task_type num_encoder_layers embed_dim num_heads dim_feedforward layer_heads layer_feedforward "
        "conv_kernel_size norm_first layer_norm_eps activation positions dropout variational_dropout attention_dropout "
        "lexical_features copy_head max_seq_len max_target_len doc_stride optimizer learning_rate muon_learning_rate "
        "warmup_ratio weight_decay beta1 beta2 max_grad_norm num_epochs max_steps batch_size micro_batch_size "
        "micro_batch_tokens seed precision",
    ),
    "what a compression depends on": (
        lambda: with_role("compression", "validation"),
        COMPRESSION + " dataset validation_file validation_size corpus_dir sample_size",
    ),
    "what may differ between runs of the ablation": (
        lambda: only_roles("path", "cache", "machine"),
        "output_dir run_name cache_dir device num_threads",
    ),
    "flags of scripts/predict.py": (
        lambda: with_role("decoding", "records"),
        GENERATION + " document_field summary_field seed",
    ),
    "flags of scripts/evaluate.py": (
        lambda: set(with_role("decoding", "records", "evaluation")) - {"seed"},
        GENERATION + " document_field summary_field validation_size eval_stride eval_samples",
    ),
    "flags of scripts/compress.py": (
        lambda: {*with_role("machine", "cache"), *(set(with_role("path")) & set(with_role("data", "report")))},
        "train_file validation_file corpus_dir cache_dir attention_dir device num_threads",
    ),
}


@pytest.mark.parametrize("name", DERIVED)
def test_derived_lists(name):
    derive, expected = DERIVED[name]
    assert sorted(derive()) == sorted(expected.split())


def test_every_role_is_used_and_explained():
    assert all(each.metadata["roles"] for each in OPTIONS.values())
    assert set.union(*(set(each.metadata["roles"]) for each in OPTIONS.values())) == ROLES.keys()


def test_roles_that_are_not_known():
    for call in (lambda: option(1, "help", role="shap"), lambda: with_role("shap"), lambda: only_roles("shap")):
        with pytest.raises(AssertionError, match="unknown roles.*shap"):
            call()
    with pytest.raises(TypeError, match="role"):
        option(1, "help")


def test_old_lists_are_the_derived_ones():
    """The lists kept by hand in the code itself."""
    from him.config.config import SHAPE
    from him.config.options.shared import CompressionOptions, GenerationOptions
    from him.runs.untrusted import OWN
    from him.workflows import pretrain, train
    from scripts import compress, evaluate, predict
    from scripts.experiments import ablation

    assert set(SHAPE) == set(DERIVED["shape"][0]())
    assert set(train.MAY_CHANGE) == set(DERIVED["may change when a run goes on"][0]())
    assert set(train.MAY_MOVE) == set(DERIVED["may move when a run goes on"][0]())
    assert set(pretrain.SETTINGS) == set(pretraining_settings())
    of_data = {"dataset", "validation_file", "validation_size", "corpus_dir", "sample_size"}
    section = {each.name for each in fields(CompressionOptions)} - {"compress"}
    assert of_data | section == set(with_role("compression", "validation"))
    assert set(ablation.MAY_DIFFER) == set(only_roles("path", "cache", "machine"))
    named = {each.name for each in fields(ablation.Ablation)} & set(with_role("path"))
    assert set(ablation.PATHS) == named - set(ablation.MAY_DIFFER)
    generation = {each.name for each in fields(GenerationOptions)} | {"max_new_tokens"}
    assert generation | set(predict.OTHER_SETTINGS) == set(with_role("decoding", "records"))
    assert generation | set(evaluate.OF_DATA) == set(DERIVED["flags of scripts/evaluate.py"][0]())
    assert set(compress.OF_DATA) == set(DERIVED["flags of scripts/compress.py"][0]())
    assert set(compress.SETTINGS) == set(with_role("compression"))
    prefixes = (*(spec.cache_prefix for spec in SPECS.values()), "pretrained")
    assert OWN["cache_dir"] == tuple(f"{prefix}-*" for prefix in prefixes)
