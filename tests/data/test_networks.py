"""VGG-16 and AlexNet from files in the published formats, made here; the same weights read alike from all."""

import os
import pathlib

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from cnninv_jax import data
from cnninv_jax.data import ARCHITECTURES, FilterFileError, fetch, load_network

FOLDER = os.environ.get("CNNINV_DATA") or pathlib.Path(__file__).parents[3] / "shared" / "data"
KERNELS = pathlib.Path(FOLDER) / "vgg16" / "vgg16_conv1_1_to_conv2_2.npz"
#: Modules of torchvision's ``features`` that are convolutions.
TORCHVISION = {
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "alexnet": (0, 3, 6, 8, 10),
}


def weights(name, layers, seed=0):
    rng = np.random.default_rng(seed)
    specs = ARCHITECTURES[name].layers[:layers]
    return {
        spec.name: (
            rng.standard_normal(spec.shape).astype(np.float32),
            rng.standard_normal(spec.shape[0]).astype(np.float32),
        )
        for spec in specs
    }


def last(kernel):
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))


def save_torchvision(path, layers, name="vgg16", prefix=""):
    tensors = {}
    for index, (kernel, bias) in zip(TORCHVISION[name], layers.values(), strict=False):
        tensors[f"{prefix}features.{index}.weight"] = kernel
        tensors[f"{prefix}features.{index}.bias"] = bias
    tensors["classifier.0.weight"] = np.zeros((4, 8), np.float32)
    save_file(tensors, path)


def save_keras(path, layers, style="old"):
    """Write Keras' file of 2016 (block1_conv1_W_1:0) or its later HDF5 layout (kernel:0 one group deeper)."""
    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in layers.items():
            block, number = name.removeprefix("conv").split("_")
            layer = f"block{block}_conv{number}"
            names = (f"{layer}_W_1:0", f"{layer}_b_1:0") if style == "old" else (f"{layer}/kernel:0", f"{layer}/bias:0")
            file[f"{layer}/{names[0]}"], file[f"{layer}/{names[1]}"] = last(kernel), bias
        file.create_group("block1_pool")


def save_npz(path, layers, biases=True):
    tensors = {f"{name}_W": last(kernel) for name, (kernel, _) in layers.items()}
    if biases:
        tensors |= {f"{name}_b": bias for name, (_, bias) in layers.items()}
    np.savez(path, **tensors)


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def chunk(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def save_caffe(path, layers, old=False):
    """Write the protocol buffer Caffe writes: layers in field 100, or 2 in files of 2014."""
    layer_field, name_field, blob_field = (2, 4, 6) if old else (100, 1, 7)
    net = chunk(1, b"a net")
    net += chunk(layer_field, chunk(name_field, b"data") + varint(5 << 3) + varint(300))  # no blobs, an enum
    for name, blobs in layers.items():
        message = chunk(name_field, name.encode())
        for blob in blobs:
            shape = (1,) * (4 - blob.ndim) + blob.shape
            sizes = b"".join(varint(i << 3) + varint(n) for i, n in enumerate(shape, 1))
            message += chunk(blob_field, (sizes if old else chunk(7, chunk(1, b"".join(map(varint, blob.shape)))))
                             + chunk(5, blob.astype("<f4").tobytes()))  # fmt: skip
        net += chunk(layer_field, message)
    path.write_bytes(net)


SAVERS = {
    "torchvision.safetensors": save_torchvision,
    "keras.h5": save_keras,
    "keras_new.h5": lambda path, layers: save_keras(path, layers, "new"),
    "caffe.npz": save_npz,
    "net.caffemodel": save_caffe,
    "net2014.caffemodel": lambda path, layers: save_caffe(path, layers, old=True),
}


@pytest.mark.parametrize("file", SAVERS)
def test_every_format_gives_the_same_banks(tmp_path, file):
    layers = weights("vgg16", 4)
    SAVERS[file](tmp_path / file, layers)
    network = load_network(tmp_path / file)
    assert (network.name, [layer.name for layer in network.layers]) == ("vgg16", list(layers))
    for layer, (kernel, bias) in zip(network.layers, layers.values(), strict=True):
        np.testing.assert_array_equal(layer.filters, kernel)
        np.testing.assert_array_equal(layer.bias, bias)
        assert layer.filters.dtype == np.float32
        assert (layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), 1)
    assert [layer.pool and layer.pool.name for layer in network.layers] == [None, "pool1", None, "pool2"]
    assert network.preprocessing.name == ("torchvision" if "torchvision" in file else "caffe")
    assert "4 of 13 layers are there, missing: conv3_1" in network.notes[0]


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_torchvision_alexnet(tmp_path, prefix):
    layers = weights("alexnet", 3)
    save_torchvision(tmp_path / "a.safetensors", layers, "alexnet", prefix)
    network = load_network(tmp_path / "a.safetensors")
    assert network.name == "alexnet"
    assert [layer.filters.shape for layer in network.layers] == [(64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3)]
    assert network.layers[0].stride == (4, 4)
    assert network.layers[0].pool.window == (3, 3)


@pytest.mark.parametrize("file", ["caffe.npz", "net.caffemodel", "net2014.caffemodel"])
def test_caffe_alexnet_has_two_halves(tmp_path, file):
    layers = weights("alexnet-caffe", 2)
    SAVERS[file](tmp_path / file, layers)
    network = load_network(tmp_path / file)
    assert network.name == "alexnet-caffe"
    second = network.layer("conv2")
    assert (second.filters.shape, second.groups, second.channels, second.normalize) == ((256, 48, 5, 5), 2, 96, True)
    assert network.layers[0].padding == (0, 0)
    np.testing.assert_array_equal(second.filters, layers["conv2"][0])


def test_missing_biases_and_layers_are_said(tmp_path):
    layers = weights("vgg16", 4)
    del layers["conv1_2"]
    save_npz(tmp_path / "a.npz", layers, biases=False)
    network = load_network(tmp_path / "a.npz")
    assert any("no biases for its layers" in note for note in network.notes)
    assert any("missing: conv1_2, conv3_1" in note for note in network.notes)
    assert all(layer.bias is None for layer in network.layers)
    # What follows the gap is there for its filters, but no picture reaches it.
    assert [layer.name for layer in network.runnable] == ["conv1_1"]
    with pytest.raises(FilterFileError, match=r"no layer 'conv1_2'.*it has: conv1_1, conv2_1"):
        network.layer("conv1_2")


def test_a_network_without_its_first_layer_takes_no_picture(tmp_path):
    layers = weights("vgg16", 2)
    del layers["conv1_1"]
    save_npz(tmp_path / "a.npz", layers)
    with pytest.raises(FilterFileError, match="lacks conv1_1, so no picture"):
        _ = load_network(tmp_path / "a.npz").runnable


def test_wrong_shapes_are_one_sentence(tmp_path):
    layers = weights("vgg16", 2)
    layers["conv1_2"] = (np.ones((64, 32, 3, 3), np.float32), np.ones(64, np.float32))
    save_torchvision(tmp_path / "a.safetensors", layers)
    message = r"not VGG-16: 'features.2.weight' \(64, 32, 3, 3\) float32 should be conv1_2 with shape \(64, 64, 3, 3\)"
    with pytest.raises(FilterFileError, match=message):
        load_network(tmp_path / "a.safetensors", architecture="vgg16")
    # Without a claim it is somebody's own network, and the reason is kept.
    network = load_network(tmp_path / "a.safetensors")
    assert network.architecture is None
    assert "should be conv1_2" in network.notes[0]


def test_a_deeper_relative_is_not_taken_for_vgg16(tmp_path):
    layers = weights("vgg16", 2) | {"conv3_4": (np.ones((256, 256, 3, 3), np.float32), np.ones(256, np.float32))}
    save_keras(tmp_path / "a.h5", layers)
    network = load_network(tmp_path / "a.h5")
    assert network.architecture is None
    assert "block3_conv4" in network.notes[0]
    with pytest.raises(FilterFileError, match="not VGG-16: it has a kernel 'block3_conv4"):
        load_network(tmp_path / "a.h5", architecture="vgg16")


def test_kernels_in_order_where_names_say_nothing(tmp_path):
    layers = weights("vgg16", 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:  # Keras 3
        for index, (kernel, bias) in enumerate(layers.values()):
            group = "layers/conv2d" + (f"_{index}" if index else "")
            file[f"{group}/vars/0"], file[f"{group}/vars/1"] = last(kernel), bias
    network = load_network(tmp_path / "a.h5", architecture="vgg16")
    assert [layer.name for layer in network.layers] == list(layers)
    for layer, (kernel, bias) in zip(network.layers, layers.values(), strict=True):
        np.testing.assert_array_equal(layer.filters, kernel)
        np.testing.assert_array_equal(layer.bias, bias)
    assert "in the order of their names" in network.notes[0]
    with pytest.raises(FilterFileError, match=r"kernel 1 of .* should be conv1 with shape \(64, 3, 11, 11\)"):
        load_network(tmp_path / "a.h5", architecture="alexnet")


@pytest.mark.parametrize("filters_last", [False, True])
def test_any_other_checkpoint_is_a_list_of_kernels(tmp_path, filters_last):
    rng = np.random.default_rng(1)
    kernels = {f"stage.{i}.weight": rng.standard_normal((8 + i, 5, 3, 3)).astype(np.float32) for i in (10, 2, 1)}
    stored = {name: last(kernel) if filters_last else kernel for name, kernel in kernels.items()}
    line = rng.standard_normal((7, 6, 40) if not filters_last else (7, 40, 6)).astype(np.float16)
    save_file(stored | {"stage.2.bias": np.ones(10, np.float32), "line.kernel": line}, tmp_path / "a.safetensors")
    network = load_network(tmp_path / "a.safetensors")
    assert [layer.name for layer in network.layers] == ["line", "stage.1", "stage.2", "stage.10"]
    for layer in network.layers[1:]:
        np.testing.assert_array_equal(layer.filters, kernels[layer.tensor])
    assert network.layers[2].bias is not None
    assert network.layers[1].bias is None
    assert "filters last" in network.notes[0] if filters_last else "filters first" in network.notes[0]
    assert any("float16" in note for note in network.notes)
    with pytest.raises(FilterFileError, match="no picture can be passed"):
        _ = network.runnable
    with pytest.raises(FilterFileError, match="leave the preprocessing out"):
        load_network(tmp_path / "a.safetensors", preprocessing="caffe")


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({"conv1_1_W": np.full((3, 3, 3, 64), np.nan)}, {}, "1728 of its 1728 entries are not"),
        ({"a": np.ones(3), "b": np.ones((3, 2))}, {}, "tensors with 3 or 4 axes"),
        ({"a": np.ones(3)}, {"architecture": "vgg16"}, "no tensor with 4 axes"),
        ({"a": np.ones((2, 2, 3, 3))}, {"architecture": "vgg61"}, r"did you mean 'vgg16'\?"),
        ({"a": np.ones((2, 2, 3, 3))}, {"preprocessing": "caffeine"}, "preprocessing must be one of caffe"),
        ({"conv1_1_W": np.ones((3, 3, 3, 64)), "conv1_1_b": np.ones(3)}, {"architecture": "vgg16"}, "bias of conv1_1"),
    ],
    ids=["nan", "vectors", "no kernels", "architecture", "preprocessing", "bias"],
)  # fmt: skip
def test_refusals(tmp_path, tensors, options, message):
    np.savez(tmp_path / "a.npz", **tensors)
    with pytest.raises(FilterFileError, match=message):
        load_network(tmp_path / "a.npz", **options)


def test_float64_is_converted_and_said(tmp_path):
    np.savez(tmp_path / "a.npz", conv1_1_W=np.ones((3, 3, 3, 64)))
    network = load_network(tmp_path / "a.npz", preprocessing="caffe-rgb")
    assert network.layers[0].filters.dtype == np.float32
    assert any("float64 to float32" in note for note in network.notes)
    assert network.preprocessing.name == "caffe-rgb"


@pytest.mark.parametrize("cut", [1, 30, 400, 6000])
def test_a_damaged_caffe_model_is_one_sentence(tmp_path, cut):
    path = tmp_path / "a.caffemodel"
    save_caffe(path, weights("vgg16", 1))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(FilterFileError, match="cannot be read as a Caffe model"):
        load_network(path)


def test_preprocessing():
    picture = np.zeros((2, 3, 2, 2), np.float32)
    picture[:, 0] = 1.0  # red
    found = data.PREPROCESSINGS["caffe"](picture)
    np.testing.assert_allclose(found[0, :, 0, 0], [-103.939, -116.779, 255 - 123.68], rtol=1e-6)
    found = data.PREPROCESSINGS["caffe-rgb"](picture)
    np.testing.assert_allclose(found[1, :, 0, 0], [255 - 123.68, -116.779, -103.939], rtol=1e-6)
    found = data.PREPROCESSINGS["torchvision"](picture)
    np.testing.assert_allclose(found[0, :, 1, 1], [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-6)
    assert found.dtype == np.float32


def test_fetch_compares_the_checksum(tmp_path, monkeypatch):
    import pooch

    monkeypatch.setenv("CNNINV_CACHE", str(tmp_path / "cache"))
    save_keras(tmp_path / "a.h5", weights("vgg16", 1))
    bytes_ = (tmp_path / "a.h5").read_bytes()

    def download(url, output_file, pooch=None, check_only=False):
        assert url == data.PUBLIC_FILES["vgg16"].address
        pathlib.Path(output_file).write_bytes(bytes_)

    monkeypatch.setattr("pooch.core.choose_downloader", lambda *a, **k: download)
    with pytest.raises(FilterFileError, match="is not the file it should be"):
        fetch("vgg16")
    held = data.PUBLIC_FILES["vgg16"]
    checksum = "md5:" + pooch.file_hash(str(tmp_path / "a.h5"), alg="md5")
    own = type(held)(held.address, checksum, 1, "a test", "vgg16")
    monkeypatch.setitem(data.PUBLIC_FILES, "vgg16", own)
    assert load_network("fetch:vgg16").name == "vgg16"
    assert fetch("vgg16").parent == tmp_path / "cache"


def test_fetch_offline_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNINV_CACHE", str(tmp_path))

    def download(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr("pooch.core.choose_downloader", lambda *a, **k: download)
    with pytest.raises(
        FilterFileError, match=r"could not be fetched \(ConnectionError\): connect to the net, or get http"
    ):
        load_network("fetch:vgg16")
    with pytest.raises(FilterFileError, match="save_file"):
        fetch("alexnet")
    with pytest.raises(FilterFileError, match="did you mean 'vgg16'"):
        fetch("vgg")


@pytest.mark.skipif(
    not KERNELS.is_file(),
    reason=f"the VGG-16 kernels do not ship with the project and {KERNELS} is absent; set CNNINV_DATA",
)
def test_published_kernels():
    network = load_network(KERNELS)
    assert network.name == "vgg16"
    assert [layer.name for layer in network.runnable] == ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
    stored = np.load(KERNELS)
    for layer in network.layers:
        np.testing.assert_array_equal(layer.filters, stored[f"{layer.name}_W"].transpose(3, 2, 0, 1))
