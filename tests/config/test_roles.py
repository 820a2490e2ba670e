"""Roles of settings: what is derived from them, name by name."""

import pytest

from him.config.options import OPTIONS, only_roles, with_role
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


def test_where_the_derived_lists_are_used():
    """By name, so that a list kept by hand again would be found here."""
    from him.runs.untrusted import OWN
    from him.workflows import train
    from scripts import compress, evaluate, predict
    from scripts.experiments import ablation

    assert sorted(train.MAY_CHANGE) == sorted(MAY_CHANGE.split())
    assert train.MAY_MOVE == DERIVED["may move when a run goes on"][0]()
    assert ablation.MAY_DIFFER == only_roles("path", "cache", "machine")
    assert set(evaluate.SETTINGS) == DERIVED["flags of scripts/evaluate.py"][0]()
    assert set(compress.MOVED) == DERIVED["flags of scripts/compress.py"][0]()
    assert compress.SETTINGS == with_role("compression")
    options = {option for action in predict.build_parser()._actions for option in action.option_strings}
    assert {f"--{name}" for name in with_role("decoding", "records")} <= options
    assert OWN["cache_dir"] == ("squad-*", "pairs-*", "corpus-*", "pretrained-*")
