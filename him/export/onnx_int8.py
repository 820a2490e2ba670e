"""The int8 form of an ONNX file: matrix products by ONNX Runtime's dynamic quantization, embeddings row by row.

ONNX Runtime quantizes an embedding table with one scale for all of it, and neither makes a tied output layer smaller,
because that weight comes out of a Transpose. Here each row of a table, the vector of one token, has a scale of its own,
and a tied output layer goes on sharing the table of its embedding.

# V rows of a table   D width
"""

from pathlib import Path
from typing import Any

import numpy as np

PRODUCTS = ["MatMul", "Gemm"]
LARGEST = 127
LEAST_CHANNELS = 32  # of a product: smaller ones are nothing in the file, and decide a lot (span and copy gate)
LEAST_TABLE = 1024  # elements of a table that is worth it


def quantize_file(source: Path, target: Path) -> None:
    """Writes the int8 form of an ONNX file of float32 to `target`.

    The weights of products are rounded to 7 bits, because processors without VNNI instructions add up pairs of 8-bit
    products in 16 bits, which may overflow; F1 is the same.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    transposed = _fold_transposes(model.graph)
    settings = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(model, target, PRODUCTS, nodes_to_exclude=_small_products(model.graph), **settings)
    model = onnx.load(target)
    _quantize_tables(model.graph, transposed)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _fold_transposes(graph: Any) -> dict[str, str]:
    """Puts transposed weights in the place of Transpose nodes, because the quantizer takes constants only.

    Returns their names by those of the weights.
    """
    from onnx import numpy_helper

    weights, folded = {weight.name: weight for weight in graph.initializer}, {}
    for node in [node for node in graph.node if node.op_type == "Transpose"]:
        weight = weights.get(node.input[0])
        if weight is not None and len(weight.dims) == 2:
            turned_DV = np.ascontiguousarray(numpy_helper.to_array(weight).T)
            graph.initializer.append(numpy_helper.from_array(turned_DV, node.output[0]))
            graph.node.remove(node)
            folded[weight.name] = node.output[0]
    return folded


def _small_products(graph: Any) -> list[str]:
    """Names of the products that stay float32."""
    weights = {weight.name: weight for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type in PRODUCTS and node.input[1] in weights]
    return [node.name for node in products if min(weights[node.input[1]].dims) < LEAST_CHANNELS]


def _quantize_tables(graph: Any, transposed: dict[str, str]) -> None:
    """Lets each Gather of rows of a float32 table take int8 rows and their scales instead."""
    from onnx import TensorProto, helper

    tables = {each.name: each for each in graph.initializer if _is_table(each)}
    nodes, done = [], {}
    for node in graph.node:
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        if node.op_type != "Gather" or axis != 0 or node.input[0] not in tables:
            nodes.append(node)
            continue
        name, ids, out = node.input[0], node.input[1], node.output[0]
        if name not in done:
            done[name] = _int8_table(graph, tables[name], transposed.get(name))
        rows, scales, is_turned = done[name]
        taken = f"{out}_rows_turned" if is_turned else f"{out}_rows"
        nodes.append(helper.make_node("Gather", [rows, ids], [taken], axis=int(is_turned)))
        if is_turned:  # (D, B, L)
            nodes.append(helper.make_node("Transpose", [taken], [f"{out}_rows"], perm=[1, 2, 0]))
        nodes.append(helper.make_node("Cast", [f"{out}_rows"], [f"{out}_rows_float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Gather", [scales, ids], [f"{out}_rows_scale"], axis=0))
        nodes.append(helper.make_node("Mul", [f"{out}_rows_float", f"{out}_rows_scale"], [out]))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    for name in done:
        if name not in used:
            graph.initializer.remove(tables[name])


def _is_table(weight: Any) -> bool:
    from onnx import TensorProto

    return weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2 and np.prod(weight.dims) >= LEAST_TABLE


def _int8_table(graph: Any, table: Any, turned: str | None) -> tuple[str, str, bool]:
    """Adds the int8 form of a table to the graph, if it is not the weight of a product already.

    Args:
        graph: gets new constants.
        table: float32 (V, D).
        turned: name of the transposed table, quantized by column, if a product has it.

    Returns:
        Names of the int8 table and of its scales (V, 1), and whether that table is (D, V).
    """
    from onnx import numpy_helper

    constants = {each.name: each for each in graph.initializer}
    is_turned = f"{turned}_quantized" in constants
    if is_turned:
        rows, scales_V1 = f"{turned}_quantized", numpy_helper.to_array(constants[f"{turned}_scale"])[:, None]
    else:
        rows, values_VD = f"{table.name}_rows", numpy_helper.to_array(table)
        scales_V1 = np.abs(values_VD).max(axis=1, keepdims=True) / LARGEST
        scales_V1[scales_V1 == 0] = 1.0
        rounded_VD = np.rint(values_VD / scales_V1).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(rounded_VD, rows))
    scales = f"{table.name}_row_scales"
    graph.initializer.append(numpy_helper.from_array(scales_V1.astype(np.float32), scales))
    return rows, scales, is_turned
