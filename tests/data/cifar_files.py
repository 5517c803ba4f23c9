"""The four official formats of CIFAR, written here: small files, byte for byte in the form of the real ones."""

import io
import struct
import tarfile

import numpy as np

#: Names of classes, in order.
_TEN = """
airplane automobile bird cat deer dog frog horse ship truck
"""
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
NAMES, FINE, COARSE = (tuple(text.split()) for text in (_TEN, _FINE, _COARSE))
#: Images in every file.
PER_FILE = 4


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def labels(count, most, seed):
    return np.random.default_rng(seed + 100).integers(0, most, count).astype(np.uint8)


def binary10():
    files = {}
    for seed, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        files[name] = np.concatenate([labels(PER_FILE, 10, seed)[:, None], images(PER_FILE, seed)], axis=1).tobytes()
    return {**files, "batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}


def binary100():
    files = {}
    for seed, name in enumerate(["train.bin", "test.bin"]):
        both = np.stack([labels(PER_FILE, 20, seed), labels(PER_FILE, 100, seed)], axis=1)
        files[name] = np.concatenate([both, images(PER_FILE, seed)], axis=1).tobytes()
    fine, coarse = ("".join(f"{name}\n" for name in names).encode() for names in (FINE, COARSE))
    return {**files, "fine_label_names.txt": fine, "coarse_label_names.txt": coarse}


class Python2:
    """Writes pickles of protocol 2 as Python 2 did: text without an encoding, NumPy's constructor by its old name."""

    def __init__(self):
        self.out, self.puts = b"\x80\x02", 0

    def put(self):
        self.puts += 1
        self.out += b"q" + bytes([self.puts]) if self.puts < 256 else b"r" + struct.pack("<I", self.puts)

    def text(self, text):
        text = text if isinstance(text, bytes) else text.encode()
        self.out += (b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))) + text
        self.put()

    def number(self, number):
        for code, form, most in ((b"K", "<B", 256), (b"M", "<H", 65536)):
            if 0 <= number < most:
                self.out += code + struct.pack(form, number)
                return
        self.out += b"J" + struct.pack("<i", number)

    def named(self, module, name):
        self.out += f"c{module}\n{name}\n".encode()
        self.put()

    def array(self, array):
        self.named("numpy.core.multiarray", "_reconstruct")
        self.named("numpy", "ndarray")
        self.number(0)
        self.out += b"\x85"
        self.text("b")
        self.out += b"\x87R"
        self.put()
        self.out += b"("
        self.number(1)
        for side in array.shape:
            self.number(side)
        self.out += b"\x86"
        self.named("numpy", "dtype")
        self.text("u1")
        self.number(0)
        self.number(1)
        self.out += b"\x87R"
        self.put()
        self.out += b"("
        self.number(3)
        self.text("|")
        self.out += b"NNN"
        for number in (-1, -1, 0):
            self.number(number)
        fortran = not array.flags.c_contiguous
        self.out += b"tb" + (b"\x88" if fortran else b"\x89")
        self.text(array.tobytes("A"))
        self.out += b"tb"

    def mapping(self, entries):
        self.out += b"}"
        self.put()
        self.out += b"("
        for key, value in entries.items():
            self.text(key)
            if isinstance(value, np.ndarray):
                self.array(value)
            elif isinstance(value, list | tuple):
                self.out += b"]"
                self.put()
                self.out += b"("
                for entry in value:
                    self.number(entry) if isinstance(entry, int) else self.text(entry)
                self.out += b"e"
            elif isinstance(value, int):
                self.number(value)
            else:
                self.text(value)
        self.out += b"u."
        return self.out


def meta10():
    return Python2().mapping({"num_cases_per_batch": 10000, "label_names": NAMES, "num_vis": 3072})


def meta100():
    return Python2().mapping({"fine_label_names": FINE, "coarse_label_names": COARSE})


def python10():
    files = {}
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        files[name] = Python2().mapping({
            "batch_label": "batch", "labels": labels(PER_FILE, 10, seed).tolist(), "data": images(PER_FILE, seed),
            "filenames": [f"{i}.png" for i in range(PER_FILE)],
        })  # fmt: skip
    return {**files, "batches.meta": meta10()}


def python100():
    files = {}
    for seed, name in enumerate(["train", "test"]):
        files[name] = Python2().mapping({
            "fine_labels": labels(PER_FILE, 100, seed).tolist(), "coarse_labels": labels(PER_FILE, 20, seed).tolist(),
            "data": images(PER_FILE, seed),
        })  # fmt: skip
    return {**files, "meta": meta100()}


#: The official folder's name, and what makes its files.
KINDS = {
    "cifar-10-batches-bin": binary10, "cifar-100-binary": binary100,
    "cifar-10-batches-py": python10, "cifar-100-python": python100,
}  # fmt: skip


def written(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archived(path, folder, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
