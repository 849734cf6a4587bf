"""Images as files of network weights: what comes back, what it costs, and files that are not right."""

import hashlib
import json
import lzma
import os
import signal
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from representation_files import Watched

from crossnorm_ns import calibrate
from crossnorm_ns.functional.metrics import psnr
from crossnorm_ns.interruption import InterruptedTraining
from crossnorm_ns.networks import METHODS
from crossnorm_ns.norms import norms_of
from crossnorm_ns.representation import codec, progress
from crossnorm_ns.representation import fit as fitting
from crossnorm_ns.representation.codec import (
    CodecError,
    ImageSpec,
    bits_per_pixel,
    decode,
    encode,
    render,
    render_8_bits,
)
from crossnorm_ns.representation.commands_codec import CompressCommand, DecompressCommand, RateDistortionCommand
from crossnorm_ns.representation.coordinates import pixel_coordinates
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.pictures import to_8_bits
from crossnorm_ns.representation.presets import PRESETS
from crossnorm_ns.representation.quantization import choose_code, pack, packed_sizes, unpack
from crossnorm_ns.representation.rate_distortion import RatePoint, gain_at_equal_rates, gains, jpeg_points, measure
from crossnorm_ns.representation.training import Training

HEIGHT, WIDTH = 20, 14


def image():
    x = pixel_coordinates(HEIGHT, WIDTH)
    return torch.stack([0.5 + 0.4 * torch.sin(5 * x[:, 0] * x[:, 1]), 0.5 + 0.3 * x[:, 0], 0.5 - 0.3 * x[:, 1]], dim=1)


def trained(method="pe+cn", hidden=(12, 12), steps=60, **options):
    torch.manual_seed(0)
    spec = ImageSpec(method, hidden, HEIGHT, WIDTH, options)
    network, points, target = spec.make(), pixel_coordinates(HEIGHT, WIDTH), image()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(points) - target).square().mean().backward()
        optimizer.step()
    calibrate(network, [(points,)])
    return network.eval(), spec


@pytest.fixture(scope="module")
def file():
    return encode(*trained(), "int8")


def rebuilt(file, change_header=None, change_content=None):
    """A file with a right checksum whose header or content was changed."""
    prefix = codec._PREFIX.size
    content = lzma.decompress(file[prefix:-32], format=lzma.FORMAT_RAW, filters=codec._FILTERS)
    (length,) = struct.unpack_from("<I", content)
    header, streams = json.loads(content[4 : 4 + length]), content[4 + length :]
    if change_header is not None:
        text = change_header(header)
        text = json.dumps(header if text is None else text).encode() if not isinstance(text, bytes) else text
        content = struct.pack("<I", len(text)) + text + streams
    if change_content is not None:
        content = change_content(content)
    compressed = lzma.compress(content, format=lzma.FORMAT_RAW, filters=codec._FILTERS)
    body = struct.pack("<5sBI", b"CNINR", 1, len(compressed)) + compressed
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_back_bit_for_bit_in_float32(method):
    """But for global normalization, of whose statistics two numbers are stored: up to their rounding."""
    network, spec = trained(method, steps=2)
    again, header = decode(encode(network, spec, "float32"))
    rounding = 1e-5 if method.endswith("+gn") else 0
    torch.testing.assert_close(render(again, HEIGHT, WIDTH), render(network, HEIGHT, WIDTH), atol=rounding, rtol=0)
    assert (header["method"], header["hidden"], header["height"]) == (method, [12, 12], HEIGHT)


def test_options_of_the_method_come_back():
    network, spec = trained("wire", omega_0=7.0, sigma_0=3.0)
    again, header = decode(encode(network, spec, "float32"))
    assert header["options"] == {"omega_0": 7.0, "sigma_0": 3.0}
    assert torch.equal(render(again, HEIGHT, WIDTH), render(network, HEIGHT, WIDTH))


@pytest.mark.parametrize(("quantization", "loss"), [("float16", 0.01), ("int8", 1.0)])
def test_quantized_files_lose_little(quantization, loss):
    network, spec = trained(hidden=(24, 24), steps=300)
    again, _ = decode(encode(network, spec, quantization))
    target = image().reshape(HEIGHT, WIDTH, 3)
    before, after = (float(psnr(render(n, HEIGHT, WIDTH), target)) for n in (network, again))
    assert before > 30
    assert after > before - loss


def test_files_shrink_with_the_quantization():
    network, spec = trained(hidden=(24, 24))
    sizes = [len(encode(network, spec, q)) for q in ("float32", "float16", "int8")]
    parameters = sum(p.numel() for p in network.parameters())
    assert sizes[1] < 0.6 * sizes[0] and sizes[2] < 0.75 * sizes[1]
    assert sizes[0] < 4 * parameters + 1500


def test_concentrated_weights_take_fewer_bits_than_8():
    """Entropy coding: 127 levels for 8 standard deviations of a Gaussian leave about 6 bits for each."""
    network, spec = trained("relu", hidden=(128, 128))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_().clamp_(-4, 4)
            parameter.view(-1)[0] = 8.0
    weights = sum(p.numel() for p in network.parameters())
    assert len(encode(network, spec, "int8")) < 0.84 * weights


def test_bits_per_pixel_count_the_whole_file(file, tmp_path):
    path = tmp_path / "image.cninr"
    path.write_bytes(file)
    assert bits_per_pixel(file, HEIGHT, WIDTH) == pytest.approx(path.stat().st_size * 8 / (HEIGHT * WIDTH))


def test_images_do_not_depend_on_the_chunks(file):
    network, _ = decode(file)
    torch.testing.assert_close(render(network, HEIGHT, WIDTH), render(network, HEIGHT, WIDTH, chunk_size=7))


def test_rendering_to_8_bits_is_rounding_of_the_image(file):
    network, _ = decode(file)
    expected = np.rint(render(network, HEIGHT, WIDTH).clamp(0, 1).numpy() * 255)
    found = render_8_bits(network, HEIGHT, WIDTH, chunk_size=3 * WIDTH)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1 and (found == expected).mean() > 0.99  # other blocks, other rounding


def test_rendering_to_8_bits_holds_no_image_in_float():
    network, largest, original = trained("relu", hidden=(2,), steps=1)[0], [], codec.pixel_coordinates

    def watched(height, width, rows):
        largest.append(len(rows) * width)
        return original(height, width, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "pixel_coordinates", watched)
        assert render_8_bits(network, 700, 900).shape == (700, 900, 3)
    assert max(largest) <= 2**14 and sum(largest) == 700 * 900


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec("relu+cn", (2,) * 45, 4096, 6000),  # many layers
        ImageSpec("wire", (16,) * 20, 2048, 2048),  # costly activations
        ImageSpec("pe", (1,), 4096, 6000, {"num_frequencies": 64}),  # a costly encoding
    ],
    ids=lambda spec: spec.method,
)
def test_narrow_networks_that_take_long_are_rendered_on_demand_only(spec, tmp_path, monkeypatch):
    """They have few weights, but take 20 s and more."""
    network = spec.make()
    calibrate(network, [(torch.rand(8, 2),)])
    path, asked = tmp_path / "narrow.cninr", []
    path.write_bytes(encode(network.eval(), spec, "float32"))
    monkeypatch.setattr(codec, "render_8_bits", lambda *given: asked.append(given) or np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(RepresentationError, match=r"narrow.cninr: its .* pixels take .* --allow-large"):
        DecompressCommand(file=path, output=tmp_path / "image.png").run()
    assert not asked and list(tmp_path.iterdir()) == [path]
    DecompressCommand(file=path, output=tmp_path / "image.png", allow_large=True).run()
    assert len(asked) == 1


def test_usual_networks_of_a_usual_picture_are_rendered():
    for method, hidden in (("siren", (49,) * 13), ("pe+cn", (256, 256)), ("wire", (100, 100))):
        assert codec.render_work(ImageSpec(method, hidden, 1, 1).make(), 512, 768) <= codec.MAX_WORK


def test_training_can_go_on_from_a_file(file):
    network, _ = decode(file)
    before = [norm.domains["default"].running_mean.clone() for norm in norms_of(network)]
    assert all(float(mean.abs().max()) > 0 for mean in before)
    network.train()
    network(pixel_coordinates(HEIGHT, WIDTH)).sum().backward()


def test_encoding_draws_no_random_numbers():
    network, spec = trained(steps=1)
    state = torch.random.get_rng_state()
    encode(network, spec)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_network_without_statistics_is_refused():
    spec = ImageSpec("pe+cn", (12, 12), HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="calibrate"):
        encode(spec.make(), spec)


def test_a_network_that_is_not_the_specified_one_is_refused():
    network, _ = trained()
    with pytest.raises(ValueError, match="differs"):
        encode(network, ImageSpec("pe+cn", (12, 13), HEIGHT, WIDTH))


def test_a_network_that_diverged_is_refused():
    network, spec = trained("relu", steps=1)
    next(network.parameters()).data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        encode(network, spec)


def test_values_beyond_float16_are_refused():
    network, spec = trained("relu", steps=1)
    next(network.parameters()).data[0, 0] = 1e6
    with pytest.raises(ValueError, match="float32"):
        encode(network, spec, "float16")


def test_every_truncation_is_noticed(file):
    for length in [*range(0, 60), *range(60, len(file), 37), len(file) - 1]:
        with pytest.raises(CodecError):
            decode(file[:length])


def test_every_altered_byte_is_noticed(file):
    rng = np.random.default_rng(0)
    for position in [*range(12), *rng.integers(0, len(file), 100), len(file) - 1]:
        altered = bytearray(file)
        altered[position] ^= 1 + int(rng.integers(255))
        with pytest.raises(CodecError):
            decode(bytes(altered))


def test_added_bytes_and_other_versions_are_noticed(file):
    with pytest.raises(CodecError, match="too long"):
        decode(file + b"\0")
    with pytest.raises(CodecError, match="version 9"):
        decode(file[:5] + b"\x09" + file[6:])
    with pytest.raises(CodecError, match="CNINR"):
        decode(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "pe+xx"},
        {"method": 3},
        {"method": "siren"},
        {"hidden": []},
        {"hidden": [12, 13]},
        {"hidden": [12, -12]},
        {"hidden": [12, True]},
        {"hidden": [12, 12.0]},
        {"hidden": [2**20, 2**20]},
        {"hidden": [1] * 1000},
        {"hidden": "12"},
        {"hidden": [60_000, 1]},
        {"method": "relu", "hidden": [60_000, 1]},
        {"method": "relu", "hidden": [4096, 4096]},
        {"quantization": "int7"},
        {"quantization": None},
        {"quantization": ["int8"]},
        {"method": "siren", "options": {"omega_0": 0}},
        {"method": "siren", "options": {"omega_0": -1}},
        {"method": "mfn", "options": {"alpha": -1}},
        {"options": {"num_frequencies": 1_000_000}},
        {"options": {"num_frequencies": 3.5}},
        {"height": 0},
        {"height": 2**40},
        {"height": 60_000, "width": 60_000},
        {"width": None},
        {"options": {"num_frequencies": 10**9}},
        {"options": {"num_frequencies": 3}},
        {"options": {"num_frequencies": [1]}},
        {"options": {"omega_0": 3}},
        {"options": []},
        {"tensors": []},
        {"tensors": None},
        {"tensors": [["encoding", [3], "f4"]]},
        {"tensors": [[["a"], [3], "f4"]]},
        {"tensors": [["mlp.layers.0.weight", [2**19, 2**19], "f4"]]},
    ],
)
def test_headers_that_do_not_fit_are_refused(file, change):
    with pytest.raises(CodecError) as caught:
        decode(rebuilt(file, change_header=lambda header: header.update(change)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("omega_0", [0, -1])
def test_networks_that_cannot_be_initialised_are_refused(omega_0):
    stored = encode(*trained("siren", steps=1))
    with pytest.raises(CodecError, match="describes no network"):
        decode(rebuilt(stored, change_header=lambda header: header["options"].update(omega_0=omega_0)))


@pytest.mark.parametrize(
    "change",
    [
        {"method": "relu", "hidden": [4000, 4000]},
        {"options": {"num_frequencies": 1_000_000}},
        {"hidden": [60_000, 1]},
    ],
)
def test_no_network_is_built_before_its_size_is_that_of_the_file(file, change, monkeypatch):
    built = []
    make = ImageSpec.make

    def watched(spec):
        built.append(make(spec))
        return built[-1]

    monkeypatch.setattr(ImageSpec, "make", watched)
    with pytest.raises(CodecError):
        decode(rebuilt(file, change_header=lambda header: header.update(change)))
    assert all(parameter.is_meta for network in built for parameter in network.parameters())


def test_long_headers_are_not_parsed(file, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    content = struct.pack("<I", 2**22) + b"[" + b"[]," * (2**22 // 3) + b"]"
    compressed = lzma.compress(content, format=lzma.FORMAT_RAW, filters=codec._FILTERS)
    body = struct.pack("<5sBI", b"CNINR", 1, len(compressed)) + compressed
    with pytest.raises(CodecError, match="65,536"):
        decode(body + hashlib.sha256(body).digest())


def test_networks_that_readers_refuse_are_not_written():
    network, spec = trained("pe", hidden=(4,), steps=1, num_frequencies=65)
    with pytest.raises(RepresentationError, match="num_frequencies of at most 64"):
        encode(network, spec)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[1]", b"\xff\xfe", b'{"method": NaN}', b"[" * 100_000, b'{"hidden": [' + b"9" * 10_000 + b"]}"],
)
def test_headers_that_are_no_json_objects_are_refused(file, text):
    with pytest.raises(CodecError):
        decode(rebuilt(file, change_header=lambda header: text))


def test_other_codes_than_the_bytes_are_for_are_refused(file):
    def change(header):
        header["tensors"][0][2] = "f4"

    with pytest.raises(CodecError, match="bytes"):
        decode(rebuilt(file, change_header=change))


def test_missing_and_added_content_is_refused(file):
    changes = [lambda c: c[:-1], lambda c: c + b"\0", lambda c: b"", lambda c: struct.pack("<I", 2**32 - 1) + c[4:]]
    for change in changes:
        with pytest.raises(CodecError):
            decode(rebuilt(file, change_content=change))


def test_values_that_are_not_finite_are_refused():
    network, spec = trained("relu", steps=1)

    def change(content):
        (length,) = struct.unpack_from("<I", content)
        return content[: 4 + length] + b"\xff" * (len(content) - 4 - length)

    with pytest.raises(CodecError, match=r"layers\.0\.weight holds NaN"):
        decode(rebuilt(encode(network, spec, "float16"), change_content=change))


def test_a_decompression_bomb_is_stopped_early(file):
    bomb = rebuilt(file, change_content=lambda content: content + bytes(500_000_000 // 4))
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(CodecError, match="16,777,216"):
        decode(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80e6


@pytest.mark.parametrize("code", ["f4", "f2", "q8", "q8r"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 3, 2)])
def test_each_code_keeps_values_to_its_accuracy(code, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    streams = pack(values, code)
    assert [len(stream) for stream in streams] == packed_sizes(shape, code)
    error = (unpack(streams, shape, code) - values).abs()
    per_row = values.abs().flatten(1).amax(1).reshape(-1, *[1] * (len(shape) - 1))
    bound = {"f4": 0 * error, "f2": values.abs() / 2**11, "q8": values.abs().max() / 254, "q8r": per_row / 254}[code]
    assert (error <= bound * 1.13 + 1e-7).all()


def test_zeros_survive_8_bits():
    for code in ("q8", "q8r"):
        assert torch.equal(unpack(pack(torch.zeros(3, 4), code), (3, 4), code), torch.zeros(3, 4))


def test_rows_of_different_sizes_get_scales_of_their_own():
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(20, 64, generator=generator).clamp(-3, 3)
    assert choose_code("layer.weight", alike, "int8") == "q8"
    assert choose_code("layer.weight", alike * torch.logspace(0, 3, 20)[:, None], "int8") == "q8r"
    assert choose_code("layer.bias", alike[0], "int8") == "f2"
    assert choose_code("norm.rows", torch.tensor(262_144.0), "int8") == "f4"


def write_image(path, height=24, width=32):
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 8, columns * 7, 128 + 0 * rows], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_an_image_goes_to_a_file_and_back(tmp_path, capsys):
    pixels = write_image(tmp_path / "in.png")
    options = {"network": "2x24", "steps": 300, "device": "cpu"}
    CompressCommand(image=tmp_path / "in.png", output=tmp_path / "out.cninr", **options).run()
    DecompressCommand(file=tmp_path / "out.cninr", output=tmp_path / "out.png").run()
    decoded = np.asarray(Image.open(tmp_path / "out.png"))
    assert decoded.shape == pixels.shape
    assert np.sqrt(np.mean((decoded.astype(float) - pixels) ** 2)) < 8
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("float32", "float16", "int8", "bits per pixel"))


def interrupted(monkeypatch, command, step):
    """Runs a command that gets SIGTERM after a step."""
    act = lambda done: done == step and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with monkeypatch.context() as watched:
        watched.setattr(progress, "progress_bar", lambda name: lambda steps, metric: Watched(act))
        with pytest.raises(InterruptedTraining):
            command.run()


def test_an_interrupted_compression_goes_on_to_the_same_file(tmp_path, monkeypatch, usual_signals):
    write_image(tmp_path / "in.png")
    options = {"network": "1x8", "steps": 30, "device": "cpu"}
    CompressCommand(image=tmp_path / "in.png", output=tmp_path / "undisturbed.cninr", **options).run()
    command = CompressCommand(image=tmp_path / "in.png", output=tmp_path / "out.cninr", **options)
    interrupted(monkeypatch, command, 12)
    assert not (tmp_path / "out.cninr").exists()
    with pytest.raises(RepresentationError, match="out.cninr.training is there already: --resume"):
        command.run()
    taken = []
    original = Training.step
    monkeypatch.setattr(Training, "step", lambda self: taken.append(self.state.step) or original(self))
    replace(command, resume=True).run()
    assert taken == list(range(12, 30))
    assert (tmp_path / "out.cninr").read_bytes() == (tmp_path / "undisturbed.cninr").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.cninr", "undisturbed.cninr"]


def test_interrupted_curves_keep_the_networks_that_are_done(tmp_path, monkeypatch, usual_signals):
    write_image(tmp_path / "in.png")
    options = {"networks": ("1x8", "2x8"), "steps": 20, "device": "cpu"}
    RateDistortionCommand(image=tmp_path / "in.png", output=tmp_path / "undisturbed", **options).run()
    command = RateDistortionCommand(image=tmp_path / "in.png", output=tmp_path / "curves", **options)
    replace(command, networks=("1x8",)).run()
    interrupted(monkeypatch, replace(command, networks=("2x8",)), 15)
    taken = []
    original = Training.step
    monkeypatch.setattr(Training, "step", lambda self: taken.append(self.state.step) or original(self))
    replace(command, resume=True).run()
    assert taken == list(range(15, 20)), "the first network was done"
    found, expected = (
        json.loads((tmp_path / name / "points.json").read_text())["points"] for name in ("curves", "undisturbed")
    )
    assert found == expected


def test_a_folder_that_was_there_before_a_compression_is_left_alone(tmp_path):
    write_image(tmp_path / "in.png")
    (tmp_path / "out.cninr.training").mkdir()
    (tmp_path / "out.cninr.training" / "notes.txt").write_text("mine")
    options = {"network": "1x8", "steps": 3, "device": "cpu"}
    with pytest.raises(RepresentationError, match="is there already"):
        CompressCommand(image=tmp_path / "in.png", output=tmp_path / "out.cninr", **options).run()
    assert (tmp_path / "out.cninr.training" / "notes.txt").read_text() == "mine"


def test_a_compression_that_diverges_keeps_what_its_message_names(tmp_path):
    write_image(tmp_path / "in.png")
    options = {"network": "1x8", "steps": 40, "learning_rate": 1e30, "device": "cpu"}
    said = "diverged .*smaller --learning-rate, and remove .*out.cninr.training"
    with pytest.raises(RepresentationError, match=said):
        CompressCommand(image=tmp_path / "in.png", output=tmp_path / "out.cninr", **options).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.cninr.training"]


def test_values_beyond_float16_can_be_stored_in_float32(tmp_path, monkeypatch):
    write_image(tmp_path / "in.png")
    fit = fitting.fit

    def fit_with_a_large_weight(*arguments, **options):
        run = fit(*arguments, **options)
        run.network.layers[0].bias.data[0] = 1e6
        return run

    monkeypatch.setattr(fitting, "fit", fit_with_a_large_weight)
    options = {"method": "relu", "network": "1x8", "steps": 1, "device": "cpu"}
    command = CompressCommand(image=tmp_path / "in.png", output=tmp_path / "out.cninr", **options)
    with pytest.raises(RepresentationError, match="use --quantization float32"):
        command.run()
    replace(command, quantization="float32", resume=True).run()
    network, _ = decode((tmp_path / "out.cninr").read_bytes())
    assert float(network.layers[0].bias.detach()[0]) == 1e6


def test_compression_uses_the_presets_options_of_the_method(tmp_path, monkeypatch):
    write_image(tmp_path / "in.png")
    preset = replace(PRESETS["quick"]["image"], network_options={"pe": {"num_frequencies": 3}})
    monkeypatch.setitem(PRESETS["quick"], "image", preset)
    options = {"network": "1x8", "steps": 1, "device": "cpu"}
    CompressCommand(image=tmp_path / "in.png", output=tmp_path / "out.cninr", **options).run()
    network, header = decode((tmp_path / "out.cninr").read_bytes())
    assert header["options"] == {"num_frequencies": 3} and network.mlp.in_dim == 2 * (1 + 2 * 3)


def test_measured_quality_is_that_of_the_8_bit_image():
    truth = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0))
    decoded = to_8_bits((truth + 0.1).numpy())
    point = measure("codec", "setting", b"12345", decoded, truth)
    error = np.mean((decoded / 255 - truth.numpy()) ** 2)
    assert point.psnr == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert point.bits_per_pixel == 40 / 256 and point.bytes == 5
    assert decoded.max() == 255 and to_8_bits(np.full((1, 1, 3), -0.2)).max() == 0


def test_jpegs_of_higher_quality_are_larger_and_better():
    rows, columns = torch.meshgrid(torch.linspace(0, 9, 64), torch.linspace(0, 9, 64), indexing="ij")
    image = torch.stack([0.5 + 0.5 * torch.sin(rows * columns), columns / 9, rows / 9], dim=-1)
    points = jpeg_points(image, (5, 50, 95))
    for worse, better in zip(points[:-1], points[1:], strict=True):
        assert worse.bytes < better.bytes and worse.psnr < better.psnr and worse.ssim < better.ssim
    assert points[0].bits_per_pixel == points[0].bytes * 8 / 64**2


def _curve(codec, psnr_of_rate, rates):
    return [RatePoint(codec, "", 0, float(rate), float(psnr_of_rate(np.log2(rate))), 0.0) for rate in rates]


def test_gains_are_differences_of_psnr_at_equal_rates():
    """Straight over the logarithm of the rate: 20 + 4 x and 21 + 2 x, both known from 1 to 8 bits per pixel."""
    points = [
        *_curve("steep float16", lambda x: 20 + 4 * x, (0.5, 2, 8)),
        *_curve("flat float16", lambda x: 21 + 2 * x, (16, 4, 1)),
    ]
    gain = gain_at_equal_rates(points, "steep float16", "flat float16")
    assert gain is not None
    assert (gain.least, gain.mean, gain.largest) == pytest.approx((-1, 2, 5)), "2 x - 1 for x from 0 to 3"
    assert (gain.lowest_rate, gain.highest_rate) == pytest.approx((1, 8))
    back = gain_at_equal_rates(points, "flat float16", "steep float16")
    assert back is not None and back.mean == pytest.approx(-2)


def test_codecs_without_common_rates_are_not_compared():
    points = [
        *_curve("a int8", lambda x: x, (1, 2)),
        *_curve("b int8", lambda x: x, (2, 3)),
        *_curve("jpeg", abs, (9,)),
    ]
    assert gain_at_equal_rates(points, "a int8", "b int8") is None
    assert gain_at_equal_rates(points, "a int8", "jpeg") is None
    assert gain_at_equal_rates(points, "a int8", "c int8") is None
    assert gains(points) == []


def test_methods_are_compared_where_they_store_weights_alike_and_with_jpeg():
    codecs = ("pe+cn float16", "pe+cn int8", "pe float16", "pe int8", "jpeg")
    points = [point for codec in codecs for point in _curve(codec, abs, (1, 2))]
    assert [(gain.codec, gain.other) for gain in gains(points)] == [
        ("pe+cn float16", "pe float16"),
        ("pe+cn int8", "pe int8"),
        *((codec, "jpeg") for codec in codecs[:-1]),
    ]


def test_the_curves_hold_jpeg_and_every_network(tmp_path, capsys):
    write_image(tmp_path / "in.png")
    RateDistortionCommand(
        image=tmp_path / "in.png", networks=("1x8", "2x8"), steps=3, device="cpu", output=tmp_path / "curves"
    ).run()
    points = json.loads((tmp_path / "curves" / "points.json").read_text())["points"]
    assert {point["codec"] for point in points} == {"jpeg", "pe+cn float32", "pe+cn float16", "pe+cn int8"}
    assert {p["setting"] for p in points if p["codec"] == "pe+cn int8"} == {"1x8", "2x8"}
    assert (tmp_path / "curves" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "PSNR at equal bits per pixel" in capsys.readouterr().out


def test_inputs_that_are_no_files_of_the_kind_are_refused(tmp_path):
    write_image(tmp_path / "in.png")
    with pytest.raises(CodecError, match=r"in\.png: .*CNINR"):
        DecompressCommand(file=tmp_path / "in.png", output=tmp_path / "out.png").run()
    with pytest.raises(RepresentationError, match="suffix"):
        DecompressCommand(file=tmp_path / "in.png", output=tmp_path / "out.xyz").run()
    assert not (tmp_path / "out.png").exists()
