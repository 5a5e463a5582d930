"""Enron1: layouts, broken files, the split that keeps equal e-mails together, and the real archive."""

import tarfile
import zipfile
from itertools import pairwise

import numpy as np
import pytest
from commands import REPOSITORY
from sklearn.linear_model import LogisticRegression

from quintet.common.errors import UserError
from quintet.data.examples.bag_of_words import words
from quintet.data.examples.datamodule import ExampleDataModule
from quintet.data.examples.enron import Enron
from quintet.data.samples.enron import SampleEnron, write_enron_sample

REAL = REPOSITORY.parent / "shared" / "data" / "enron1" / "enron1.zip"
HAM = ["Subject: meter volume", "Subject: gas gas", "Subject: plant", "Subject: gas contract", "Subject: meter"]
SPAM = ["Subject: cheap pills", "Subject: pills pills now", "Subject: prize", "Subject: cheap prize", "Subject: buy"]
LOOSE = {"min_emails": 1, "max_words": None}


def write(root, ham=HAM, spam=SPAM):
    for kind, texts in (("ham", ham), ("spam", spam)):
        (root / kind).mkdir(parents=True)
        for number, text in enumerate(texts):
            (root / kind / f"{number:04d}.{kind}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def arrays(rows):
    return np.array(rows["inputs"], np.float32), np.array(rows["label"]), list(rows["name"])


def read(root, tmp_path, **settings):
    source = Enron(str(root), **LOOSE | settings)
    return source, source.splits(tmp_path / "cache")


def test_archives_and_folders_read_the_same(tmp_path):
    folder = write(tmp_path / "plain" / "enron1")
    with zipfile.ZipFile(tmp_path / "enron1.zip", "w") as bundle:
        for path in folder.rglob("*.txt"):
            bundle.write(path, path.relative_to(folder.parent))
            bundle.writestr(f"__MACOSX/enron1/{path.parent.name}/._{path.name}", "finder")
    with tarfile.open(tmp_path / "enron1.tar.gz", "w:gz") as bundle:
        bundle.add(folder, "enron1")
    (folder / "ham" / "._0000.ham.txt").write_text("finder")
    names = []
    for root in (folder, folder.parent, tmp_path / "enron1.zip", tmp_path / "enron1.tar.gz", tmp_path / "enron1"):
        _, splits = read(root, tmp_path)
        names.append([name for split in splits for name in splits[split]["name"]])
        assert len(splits["train"]) == 8 and names[-1] == names[0]
    assert sorted(names[0]) == [f"{kind}/{n:04d}.{kind}.txt" for kind in ("ham", "spam") for n in range(5)]


def test_rows_are_counts_of_their_own_e_mail(tmp_path):
    source, splits = read(write(tmp_path / "e"), tmp_path)
    texts = {f"{kind}/{n:04d}.{kind}.txt": t for kind, ts in (("ham", HAM), ("spam", SPAM)) for n, t in enumerate(ts)}
    for split in ("train", "test"):
        for counts, label, name in zip(*arrays(splits[split]), strict=True):
            spelled = words(texts[name])
            assert counts.tolist() == [spelled.count(word) for word in source.feature_names]
            assert label == name.startswith("spam")
    assert splits["train"].features["label"].names == ["ham", "spam"]
    _, binary = read(tmp_path / "e", tmp_path, binary=True)
    assert np.array_equal(arrays(binary["train"])[0], arrays(splits["train"])[0] > 0)


def test_the_vocabulary_is_that_of_training_alone(tmp_path):
    # every e-mail has a word of its own
    letters = "abcdefghijklmnopqrst"
    texts = [f"Subject: {letter * 3}" for letter in letters]
    source, splits = read(write(tmp_path / "e", texts[:10], texts[10:]), tmp_path, val_fraction=0.1)
    of_train = {texts[(10 if name.startswith("spam") else 0) + int(name.split("/")[1][:4])][9:]
                for name in splits["train"]["name"]}  # fmt: skip
    assert set(source.feature_names) == {"subject"} | of_train and len(of_train) == 16
    assert [len(splits[split]) for split in ("train", "val", "test")] == [16, 2, 2]
    rest = np.concatenate([arrays(splits[split])[0] for split in ("val", "test")])
    assert rest.sum() == 4 and np.all(rest[:, source.feature_names.index("subject")] == 1)


def test_min_emails_max_words_and_stop_words(tmp_path):
    root = write(tmp_path / "e", ["Subject: the gas the gas"] * 6, ["Subject: the pills", *["Subject: win"] * 3])
    settings = {"duplicates": "keep", "train_fraction": 0.9}
    assert set(read(root, tmp_path, **settings)[0].feature_names) >= {"subject", "gas", "win"}
    assert read(root, tmp_path, min_emails=4, **settings)[0].feature_names == ["gas", "subject"]
    assert "the" in read(root, tmp_path, min_emails=4, stop_words=False, **settings)[0].feature_names
    assert read(root, tmp_path, max_words=1, **settings)[0].feature_names == ["subject"]
    with pytest.raises(UserError, match=r"no word is in data\.source\.min_emails=40 training e-mails"):
        read(root, tmp_path, min_emails=40, **settings)


def twins(splits, texts):
    """How many e-mails outside training have one of the same words in another part."""
    parts = {split: {texts[name] for name in splits[split]["name"]} for split in splits}
    return sum(len(parts[a] & parts[b]) for a, b in (("train", "val"), ("train", "test"), ("val", "test")))


@pytest.mark.parametrize("seed", range(4))
def test_group_never_separates_equal_e_mails_and_keep_does(tmp_path, seed):
    # 19 texts, each three times: with other numbers, other capitals, other line ends; and three that are alone
    same = [("Subject: {0} 12\n{0}", "subject: {0} 7\r\n{0} 9", "SUBJECT {0}  {0}")[n % 3].format(chr(97 + n // 3) * 3)
            for n in range(57)] + ["Subject: xx", "Subject: yy", "Subject: zz"]  # fmt: skip
    root = write(tmp_path / "e", same[:30], same[30:])
    texts = {f"{path.parent.name}/{path.name}": tuple(words(path.read_text())) for path in root.rglob("*.txt")}
    settings = {"train_fraction": 0.63, "val_fraction": 0.2, "seed": seed}
    _, group = read(root, tmp_path, **settings)
    _, keep = read(root, tmp_path, duplicates="keep", **settings)
    assert twins(group, texts) == 0 and twins(keep, texts) > 0
    assert [len(keep[split]) for split in keep] == [37, 12, 11]
    assert 35 <= len(group["train"]) <= 37 and 10 <= len(group["val"]) <= 12  # full, as far as groups of three fit
    for splits in (group, keep):
        assert sorted(name for split in splits for name in splits[split]["name"]) == sorted(texts)
    # twins do not stand side by side in training
    spelled = [texts[name] for name in group["train"]["name"]]
    assert sum(a == b for a, b in pairwise(spelled)) < 12


def test_the_seed_decides_the_split(tmp_path):
    root = write(tmp_path / "e")
    first, again, other = (list(read(root, tmp_path, seed=seed)[1]["train"]["name"]) for seed in (0, 0, 1))
    assert first == again != other


def test_changed_files_are_read_again(tmp_path):
    root = write(tmp_path / "e")
    source, _ = read(root, tmp_path, train_fraction=0.95)
    (root / "ham" / "0002.ham.txt").write_text("Subject: plans")
    assert "plant" in source.feature_names
    source.splits(tmp_path / "cache")
    assert "plans" in source.feature_names and "plant" not in source.feature_names


def test_empty_e_mails_are_left_out_and_counted(tmp_path):
    root = write(tmp_path / "e", [*HAM, "", " \r\n"])
    with pytest.warns(UserWarning, match=r"2 of 12 e-mails are empty and left out, the first is .*0005\.ham\.txt"):
        _, splits = read(root, tmp_path)
    assert sum(len(splits[split]) for split in splits) == 10


def test_latin_1_is_read_and_utf_16_refused(tmp_path):
    root = write(tmp_path / "e", [*HAM, "Subject: caf\xe9".encode("latin-1")])
    assert "café" in read(root, tmp_path, train_fraction=0.95)[0].feature_names
    (root / "ham" / "0002.ham.txt").write_bytes("Subject: gas".encode("utf-16"))
    with pytest.raises(UserError, match=r"0002\.ham\.txt is UTF-16, Enron1 is latin-1"):
        read(root, tmp_path)
    assert len(list((tmp_path / "cache").glob("examples/*/train.arrow"))) == 1


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no Enron1 at data\.root=/nowhere: put enron1\.zip .*data=enron_sample"):
        read("/nowhere", tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"other holds neither ham/ and spam/ nor enron1/"):
        read(tmp_path / "other", tmp_path)
    root = write(tmp_path / "e", HAM, [])
    with pytest.raises(UserError, match=r"e/spam holds no e-mail \*\.txt"):
        read(root, tmp_path)
    (root / "spam").rmdir()
    with pytest.raises(UserError, match=r"e/spam holds no e-mail \*\.txt"):
        read(root, tmp_path)
    (write(tmp_path / "f") / "ham" / "9.txt").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*9\.txt: Is a directory"):
        read(tmp_path / "f", tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_fraction": 1.0}, r"train_fraction=1\.0, val_fraction=0\.0: give fractions"),
        ({"train_fraction": 0.8, "val_fraction": 0.2}, r"train_fraction=0\.8, val_fraction=0\.2: give fractions"),
        ({"duplicates": "drop"}, "duplicates=drop: choose group, keep"),
        ({"min_emails": 0}, "min_emails=0, max_words=None: give 1 or more"),
        ({"max_words": 0}, "min_emails=1, max_words=0: give 1 or more"),
        ({"seed": -1}, "seed=-1: give 0 or more"),
    ],
)
def test_wrong_settings_name_their_key(tmp_path, settings, message):
    with pytest.raises(UserError, match=rf"data\.source\.{message}"):
        read(tmp_path, tmp_path, **settings)


def test_the_sample_reads_as_the_official_files_and_can_be_learnt(tmp_path):
    write_enron_sample(tmp_path / "written", 70, 30)
    _, expected = read(tmp_path / "written", tmp_path)
    source = SampleEnron(str(tmp_path / "root"), **LOOSE)
    module = ExampleDataModule(source, str(tmp_path / "cache"))
    module.setup()
    assert list(source.splits(tmp_path / "cache")["train"]["name"]) == list(expected["train"]["name"])
    assert module.num_examples("train") == 80 and module.num_examples("test") == 20
    model = LogisticRegression().fit(*(array.numpy() for array in module.arrays("train")))
    assert model.score(*(array.numpy() for array in module.arrays("test"))) > 0.9
    preview = module.preview("test", 0)
    assert preview.text.startswith("Subject: ") and preview.title.endswith(".txt") and preview.table is None
    with pytest.raises(UserError, match="num_spam=0"):
        SampleEnron("x", num_spam=0)


def test_the_real_archive(tmp_path):
    if not REAL.exists():
        pytest.skip(f"real data {REAL} is not on this machine")
    source = Enron(str(REAL))
    splits = source.splits(tmp_path)
    assert {split: len(splits[split]) for split in splits} == {"train": 4137, "val": 0, "test": 1035}
    assert len(source.feature_names) == 3294
    folder = source.find(tmp_path) / "enron1"
    texts = {f"{p.parent.name}/{p.name}": tuple(words(p.read_text("latin-1"))) for p in folder.rglob("*.txt")
             if p.parent.name in ("ham", "spam")}  # fmt: skip
    assert len(texts) == 5172 and twins(splits, texts) == 0
    labels = np.concatenate([np.array(splits[split]["label"]) for split in ("train", "test")])
    assert np.bincount(labels).tolist() == [3672, 1500]
    train, test = (np.stack(splits[split].with_format("numpy")[:]["inputs"]) for split in ("train", "test"))
    # a simple reference: the words of spam are other words
    model = LogisticRegression(C=0.1, max_iter=300).fit(train, labels[:4137])
    assert model.score(test, labels[4137:]) > 0.96
