"""An ONNX file in int8, by ONNX Runtime's static quantisation: the library quantises, raprune measures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raprune.data.host import ImageSplit
from raprune.models.programs import INPUT, ONNX, explained, quiet

INT8 = "int8"
PRECISIONS = (INT8,)
"""Precisions of `--quantize`."""
INT8_FILE = "model-int8.onnx"

BATCH = 16
"""Number of images in a batch of the calibration, which keeps the range of every activation."""


def quantise(path: Path, quantised: Path, images: ImageSplit) -> None:
    """Write the ONNX file `path` in int8 to `quantised`; the ranges of activations are those on `images`.

    Weights have a scale for each channel, activations one for each tensor (the extremes on the images). The graph keeps
    its inputs, outputs and metadata, and has pairs of QuantizeLinear and DequantizeLinear.

    Raises:
        ModelError: if ONNX Runtime does not quantise the network.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    with quiet(), explained(f"{ONNX} in {INT8}"):
        # Batch norm becomes part of the convolutions, whose quantised weights then contain it.
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(prepared, quantised, _reader(images), quant_format=QuantFormat.QDQ, per_channel=True)
        prepared.unlink()
        model = onnx.load(quantised)
        facts = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        onnx.helper.set_model_props(model, {**facts, "precision": INT8})
        onnx.save(model, quantised)


# A class of ONNX Runtime, which has no stub files, is its base.
def _reader(images: ImageSplit) -> Any:
    """Batches of the images, as ONNX Runtime's calibration reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[Any] = ({INPUT: x.cpu().contiguous().numpy()} for x, _ in images.batches(BATCH))

        def get_next(self) -> Any:
            return next(self._batches, None)

    return Reader()
