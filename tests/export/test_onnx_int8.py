"""Int8 tables in a graph that is written by hand."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from him.export.onnx_int8 import quantize_file

V, D = 40, 32


def run(path, ids) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"ids": ids})[0]


@pytest.fixture
def table() -> np.ndarray:
    """Rows of very different sizes, the last one all zeros."""
    values = np.random.default_rng(1).normal(size=(V, D)).astype(np.float32)
    values *= 10.0 ** np.linspace(-3, 2, V, dtype=np.float32)[:, None]
    values[-1] = 0
    return values


def save(path, nodes, weights, output_shape) -> None:
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(each, name) for name, each in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def test_each_row_has_its_own_scale(table, tmp_path):
    """A scale for the whole table would make zeros of the small rows."""
    nodes = [helper.make_node("Gather", ["table", "ids"], ["out"], name="take")]
    save(tmp_path / "float.onnx", nodes, {"table": table}, ["batch", "length", D])
    quantize_file(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    ids = np.arange(V).reshape(2, V // 2)
    np.testing.assert_array_equal(run(tmp_path / "float.onnx", ids), table[ids])
    found = run(tmp_path / "int8.onnx", ids)
    half_step = np.abs(table).max(axis=1)[ids][..., None] / 127 / 2
    assert (np.abs(found - table[ids]) <= half_step * 1.001).all()
    assert not np.array_equal(found, table[ids])


def test_a_tied_layer_shares_the_table_of_its_embedding(table, tmp_path):
    """out = table[ids] @ table.T, with the Transpose that exporting leaves there."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["taken"], name="take"),
        helper.make_node("Transpose", ["table"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["taken", "turned"], ["out"], name="product"),
    ]
    table = table / np.abs(table).max(axis=1, keepdims=True).clip(1e-9)
    save(tmp_path / "float.onnx", nodes, {"table": table}, ["batch", "length", V])
    quantize_file(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    ids = np.arange(V).reshape(4, V // 4)
    expected, found = (run(tmp_path / f"{name}.onnx", ids) for name in ("float", "int8"))
    np.testing.assert_allclose(expected, table[ids] @ table.T, atol=1e-5)
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    graph = onnx.load(tmp_path / "int8.onnx").graph
    tables = [numpy_helper.to_array(each).dtype for each in graph.initializer if np.prod(each.dims) == V * D]
    assert tables == [np.int8]
    assert "MatMulInteger" in {node.op_type for node in graph.node}


def test_small_products_stay_floats(table, tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["taken"], name="take"),
        helper.make_node("MatMul", ["taken", "head"], ["out"], name="product"),
    ]
    head = np.random.default_rng(2).normal(size=(D, 2)).astype(np.float32)
    save(tmp_path / "float.onnx", nodes, {"table": table, "head": head}, ["batch", "length", 2])
    quantize_file(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    assert "MatMulInteger" not in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
