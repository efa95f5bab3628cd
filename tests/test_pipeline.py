"""The pipeline and the `generate` verb, with networks that are plain functions of their seeds."""

import argparse
import io
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_lightning import generate as verb
from hoi_lightning.diffusion.repaint import PRESETS, RePaintSampler
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import Layout, hole_mask
from hoi_lightning.pipeline import HOIPipeline, find_device, load_picture
from hoi_lightning.tasks import FusionNet
from hoi_lightning.weights import check_checkpoints, shipped

LAYOUT = Layout(a=0.6, x=0.1, y=-0.2, b1=0.0, b2=1.0)


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class FakeMaskNet:
    checkpoint_hash = "a" * 64

    def check_sampler(self):
        pass

    def sample(self, obj, seeds, *, guidance=None):
        draws = torch.stack([noise(seed, 5) for seed in seeds])
        direction = torch.nn.functional.normalize(draws[:, 3:])
        centre = 0.3 * draws[:, 1:3] + 0.1 * obj.mean(dim=(2, 3))[:, :2]
        return torch.cat([0.5 + 0.05 * draws[:, :1].tanh(), centre, direction], dim=1)


class FakeFusionNet:
    checkpoint_hash = "b" * 64
    image_size = 48
    hole_dilation = 0.2

    def __init__(self):
        self.calls = 0

    def sample_holes(self, obj, hole, seeds):
        self.calls += 1
        assert obj.shape == (len(seeds), 3, self.image_size, self.image_size)
        paint = torch.stack([noise(seed, 3, self.image_size, self.image_size).tanh() for seed in seeds])
        self.painted = torch.lerp(obj, paint, hole)
        return self.painted


@pytest.fixture
def pipeline():
    return HOIPipeline(FakeMaskNet(), FakeFusionNet())


def picture(width=64, height=48, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(48, 48), (64, 48), (32, 200), (33, 57), (301, 180)])
def test_outside_the_hole_the_picture_is_the_input_to_the_byte(pipeline, size):
    image = picture(*size)
    original, output = np.asarray(image), pipeline(image, num_images=3, seed=5)
    side = min(size)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    for result, layout, hole in zip(output.images, output.layouts, output.hole_masks, strict=True):
        assert result.size == size
        assert hole.shape == original.shape[:2]
        drawn = hole_mask(layout.to_tensor(), side, FakeFusionNet.hole_dilation)[0].bool().numpy()
        assert (hole[top : top + side, left : left + side] == drawn).all()
        assert hole.sum() == drawn.sum()
        assert (np.asarray(result)[~hole] == original[~hole]).all()
        assert (np.asarray(result)[hole] != original[hole]).any()


def test_at_the_model_s_size_the_result_is_the_painter_s_own_picture(pipeline):
    output = pipeline(picture(48, 48), num_images=1, layouts=[LAYOUT])
    painted = ((pipeline.fusionnet.painted[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert (np.asarray(output.images[0]) == painted).all()


def test_a_sample_depends_on_seed_and_index_alone(pipeline):
    image = picture()
    whole = pipeline(image, num_images=4, seed=1, batch_size=4)
    for other in (pipeline(image, num_images=4, seed=1, batch_size=1), pipeline(image, num_images=2, seed=1)):
        for one, same in zip(whole.images, other.images, strict=False):
            assert one.tobytes() == same.tobytes()
        assert other.layouts == whole.layouts[: len(other.layouts)]
        assert other.seeds == whole.seeds[: len(other.seeds)]
    assert len({layout.x for layout in whole.layouts}) == 4
    assert pipeline(image, num_images=1, seed=2).layouts[0] != whole.layouts[0]


def test_given_layouts_are_used_and_counted(pipeline):
    assert pipeline(picture(), num_images=3, layouts=[LAYOUT]).layouts == [LAYOUT] * 3
    with pytest.raises(ValueError, match="1 or num_images=3"):
        pipeline(picture(), num_images=3, layouts=[LAYOUT] * 2)


def save(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".gif", ".jpg"])
def test_pictures_of_every_format_become_rgb(tmp_path, suffix):
    flat = Image.new("RGB", (40, 50), (200, 40, 90))
    loaded = load_picture(save(flat, tmp_path / f"a{suffix}"))
    assert (loaded.mode, loaded.size) == ("RGB", (40, 50))
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(flat)).max() <= 8  # JPEG and WebP are lossy


def test_exif_rotation_is_honoured(tmp_path):
    upright = Image.new("RGB", (60, 40), "red")
    upright.paste("blue", (0, 0, 60, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    loaded = load_picture(save(upright.rotate(90, expand=True), tmp_path / "a.png", exif=exif))
    assert loaded.tobytes() == upright.tobytes()


def test_transparency_is_shown_on_white(tmp_path):
    half = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    half.paste((10, 20, 30, 255), (0, 0, 20, 40))
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(0, (0, 0, 20, 40))
    for image, options in ((half, {}), (half.convert("LA"), {}), (palette, {"transparency": 1})):
        loaded = load_picture(save(image, tmp_path / "a.png", **options))
        assert loaded.getpixel((30, 20)) == (255, 255, 255)
        assert loaded.getpixel((5, 20)) != (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    for suffix in (".png", ".tif"):
        loaded = np.asarray(load_picture(save(Image.fromarray(ramp), tmp_path / f"a{suffix}")))
        assert np.abs(loaded[..., 0] - ramp / 257).max() <= 0.5 + 1e-6


def test_grey_bilevel_and_cmyk_become_rgb(tmp_path):
    for mode, suffix in (("L", ".png"), ("1", ".png"), ("CMYK", ".jpg"), ("CMYK", ".tif")):
        loaded = load_picture(save(Image.new("RGB", (40, 40), "white").convert(mode), tmp_path / f"a{suffix}"))
        assert loaded.mode == "RGB"
        assert min(loaded.getpixel((20, 20))) > 250


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime")]
    for suffix in (".gif", ".png", ".webp"):
        path = save(frames[0], tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
        red, green, _ = load_picture(path).getpixel((20, 20))
        assert red > 200 > 50 > green


def bomb(width, height):
    """A PNG that says it is large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def cut(suffix):
    buffer = io.BytesIO()
    picture(200, 200).save(buffer, suffix)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"these are words", "not a picture"),
        (b"", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read|not a picture"),
        (cut("PNG"), "cannot be read"),
        (cut("JPEG"), "cannot be read"),
        (cut("WEBP"), "cannot be read|not a picture"),
        (bomb(100_000, 100_000), "50 megapixels"),
        (bomb(12_000, 10_000), "50 megapixels"),
        (bomb(8_000, 8_000), "50 megapixels"),
        (bomb(31, 400), "at least 32 pixels"),
        (bomb(100, 100), "cannot be read"),
    ],
)
def test_a_bad_file_gets_one_line_with_its_name(tmp_path, content, reason, recwarn, capfd):
    path = tmp_path / "cup.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        load_picture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_a_layout_beside_the_square_is_refused(tmp_path):
    pipeline = HOIPipeline(FakeMaskNet(), FakeFusionNet())
    with pytest.raises(
        InputError,
        match=r"layout \(.*\): its hand lies outside the square \[8, 0, 56, 48\].*--box",
    ):
        pipeline(picture(), layouts=[Layout(0.5, 4.0, 4.0, 0.6, 0.8)])


@pytest.mark.parametrize("own", ["masknet", "fusionnet"])
def test_one_network_may_be_another(own, tmp_path):
    """A checkpoint's place may be taken by a released folder, and by the folder that holds that."""
    whole = shipped("mini")
    ours = HOIPipeline.from_checkpoints(device="cpu", **{own: whole / own})
    again = HOIPipeline.from_checkpoints(device="cpu", **{own: whole})
    mini = HOIPipeline.from_pretrained("mini", "cpu")
    for other in (ours, again):
        assert other.masknet.checkpoint_hash == mini.masknet.checkpoint_hash
        assert other.fusionnet.checkpoint_hash == mini.fusionnet.checkpoint_hash
    other = "fusionnet" if own == "masknet" else "masknet"
    with pytest.raises(InputError, match="holds no"):
        HOIPipeline.from_checkpoints(device="cpu", **{own: whole / other})


def test_a_missing_picture_checkpoint_or_device_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_picture(tmp_path / "absent.png")
    with pytest.raises(InputError, match=r"--fusionnet .*no such checkpoint"):
        check_checkpoints(__file__, tmp_path / "absent.ckpt")
    with pytest.raises(InputError, match="--device warp"):
        find_device("warp")
    assert find_device("cpu") == torch.device("cpu")


@pytest.fixture
def generate(tmp_path, monkeypatch):
    """Runs the verb on `tmp_path/in`; returns the painter, whose calls are counted."""
    painter = FakeFusionNet()
    fake = HOIPipeline(FakeMaskNet(), painter)
    monkeypatch.setattr(HOIPipeline, "from_checkpoints", lambda *_: fake)
    for name in ("mask.ckpt", "fusion.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "in").mkdir()

    def run(*more):
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        defaults = {"images": "in", "masknet": "mask.ckpt", "fusionnet": "fusion.ckpt", "out": "out"}
        words = [word for flag, name in defaults.items() for word in (f"--{flag}", str(tmp_path / name))]
        verb.run(parser.parse_args([*words, "--num-images", "2", *more]))
        return painter

    return run


def test_generate_leaves_pictures_records_and_a_sheet(generate, tmp_path):
    save(picture(70, 40), tmp_path / "in" / "my cup.png")
    save(picture(40, 90, seed=1), tmp_path / "in" / "杯子.jpg")
    generate("--seed", "3")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"grid.png", *(f"{s}_{k}.{e}" for s in ("my cup", "杯子") for k in (0, 1) for e in ("png", "json"))}
    record = json.loads((tmp_path / "out" / "my cup_1.json").read_text())
    assert record["source"] == "my cup.png"
    assert (record["seed"], record["index"]) == (3, 1)
    assert (record["masknet_sha256"], record["fusionnet_sha256"]) == ("a" * 64, "b" * 64)
    assert 0 < record["hole_area"] < 1
    repainted = HOIPipeline(FakeMaskNet(), FakeFusionNet())(
        load_picture(tmp_path / "in" / "my cup.png"), num_images=2, seed=3, layouts=None
    )
    with Image.open(tmp_path / "out" / "my cup_1.png") as written:
        assert written.tobytes() == repainted.images[1].tobytes()
    assert Layout(**record["layout"]) == repainted.layouts[1]
    assert record["sample_seed"] == repainted.seeds[1]


def test_generate_keeps_what_an_earlier_run_finished(generate, tmp_path, capsys):
    for i in range(3):
        save(picture(seed=i), tmp_path / "in" / f"{i}.png")
    painter = generate()
    files = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert painter.calls == 3
    generate()
    assert painter.calls == 3
    assert "6 of them kept" in capsys.readouterr().out
    (tmp_path / "out" / "1_0.json").write_text("{")  # a run stopped in the middle of this one
    (tmp_path / "out" / "2_1.png").unlink()
    generate()
    assert painter.calls == 5
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    generate("--seed", "1")
    assert painter.calls == 8


def test_generate_reports_bad_pictures_and_paints_the_good_ones(generate, tmp_path):
    save(picture(), tmp_path / "in" / "good.png")
    (tmp_path / "in" / "words.png").write_text("words")
    (tmp_path / "in" / "half.jpg").write_bytes(cut("JPEG"))
    (tmp_path / "in" / "notes.txt").write_text("not meant as a picture")
    with pytest.raises(InputError, match=r"1 pictures are painted, 2 could not be read: .*half.jpg.*words.png"):
        generate()
    assert (tmp_path / "out" / "good_1.png").is_file()


def test_generate_tells_pictures_with_one_stem_apart(generate, tmp_path):
    for name in ("cup.png", "cup.webp", "pan.png"):
        save(picture(), tmp_path / "in" / name)
    generate()
    assert {path.name for path in (tmp_path / "out").glob("*_0.png")} == {
        "cup-png_0.png",
        "cup-webp_0.png",
        "pan_0.png",
    }
    save(picture(), tmp_path / "in" / "cup-png.bmp")
    with pytest.raises(InputError, match="named cup-png"):
        generate()


def test_generate_takes_one_picture_too(generate, tmp_path):
    generate("--images", str(save(picture(), tmp_path / "lone.png")))
    assert (tmp_path / "out" / "lone_1.json").is_file()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no picture there"),
        (["--images", "{tmp}/absent.png"], "no such file"),
        (["--masknet", "{tmp}/absent.ckpt"], "no such checkpoint"),
        (["--out", "{tmp}/mask.ckpt/out"], "cannot be written"),
        (["--out", "{tmp}/in"], "choose another"),
    ],
)
def test_generate_says_what_is_wrong_before_it_paints(generate, tmp_path, words, reason):
    with pytest.raises(InputError, match=reason):
        generate(*(word.format(tmp=tmp_path) for word in words))


def test_a_folder_without_a_readable_picture_is_an_error(generate, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_text("words")
    with pytest.raises(InputError, match=r"a.png: not a picture.*b.png: not a picture"):
        generate()


@pytest.mark.parametrize("words", [["--num-images", "0"], ["--batch-size", "x"], ["--seed", "-1"]])
def test_counts_are_checked_on_the_command_line(generate, words):
    with pytest.raises(SystemExit):
        generate(*words)


def test_a_box_decides_what_the_networks_see(pipeline):
    image = picture(200, 100)
    output = pipeline(image, num_images=2, window=(120, 10, 180, 70))
    assert output.window == (120, 10, 180, 70)
    for hole in output.hole_masks:
        assert not hole[:, :120].any()
        assert not hole[:10].any()
    assert pipeline(image, num_images=1).window == (50, 0, 150, 100)


class WishfulMaskNet(FakeMaskNet):
    def sample(self, obj, seeds, *, guidance=None):
        self.guidance = guidance
        drawn = super().sample(obj, seeds)
        return (
            drawn
            if guidance is None or guidance.fixed is None
            else drawn.nan_to_num().where(guidance.fixed.isnan(), guidance.fixed)
        )


def test_generate_meets_fixed_numbers_in_the_picture_s_pixels(generate, tmp_path, monkeypatch):
    fake = HOIPipeline(WishfulMaskNet(), FakeFusionNet())
    monkeypatch.setattr(HOIPipeline, "from_checkpoints", lambda *_: fake)
    save(picture(200, 100), tmp_path / "in" / "cup.png")
    words = [
        "--box",
        "130",
        "30",
        "150",
        "50",
        "--fix-position",
        "150",
        "45",
        "--fix-size",
        "9",
        "--fix-direction",
        "90",
    ]
    generate(*words, "--layout-sampler", "unipc", "--layout-steps", "7")
    record = json.loads((tmp_path / "out" / "cup_1.json").read_text())
    x0, y0, x1, y1 = record["window"]
    assert x1 - x0 == y1 - y0 == 52
    assert (x0 + x1, y0 + y1) == (280, 80), "the object's box is in the middle"
    layout = Layout(**record["layout"])
    assert x0 + (layout.x + 1) * 26 == pytest.approx(150, abs=1e-4)
    assert y0 + (layout.y + 1) * 26 == pytest.approx(45, abs=1e-4)
    assert layout.r * 26 == pytest.approx(9, abs=1e-4)
    assert (layout.b1, layout.b2) == pytest.approx((0, 1), abs=1e-6)
    assert (fake.masknet.sampler, fake.masknet.sample_steps) == ("unipc", 7)
    assert record["asked"]["fix_position"] == [150.0, 45.0]
    painted = fake.fusionnet.calls
    generate(*words, "--layout-sampler", "unipc", "--layout-steps", "7")
    assert fake.fusionnet.calls == painted, "the same order is kept"
    generate(*words, "--layout-sampler", "unipc", "--layout-steps", "8")
    assert fake.fusionnet.calls == painted + 1


def test_generate_hands_maps_to_the_network(generate, tmp_path, monkeypatch):
    fake = HOIPipeline(WishfulMaskNet(), FakeFusionNet())
    monkeypatch.setattr(HOIPipeline, "from_checkpoints", lambda *_: fake)
    save(picture(200, 100), tmp_path / "in" / "cup.png")
    half = Image.new("L", (100, 50), 0)
    half.paste(255, (0, 0, 50, 50))
    path = str(save(half, tmp_path / "half.png"))
    generate("--centre", "--heat-map", path, "--key-point", "60", "50", "--key-point", "70", "50", "--strength", "3")
    left, right = (torch.tensor([[0.4, x, 0.0, 0.0, 1.0]]) for x in (-0.5, 0.5))
    assert fake.masknet.guidance.energy(left) < fake.masknet.guidance.energy(right)
    assert fake.masknet.guidance.strength == 3
    assert fake.masknet.guidance.fixed is None


def test_generate_paints_given_layouts_and_the_way_between_two(generate, tmp_path):
    save(picture(48, 48), tmp_path / "in" / "cup.png")
    ends = [Layout(0.7, -0.1, 0.0, 0.0, 1.0), Layout(0.8, 0.1, 0.2, 1.0, 0.0)]
    paths = []
    for k, end in enumerate(ends):
        paths.append(tmp_path / f"{k}.json")
        paths[k].write_text(json.dumps(vars(end)))
    painter = generate("--interpolate", *map(str, paths), "--num-images", "3")
    records = [json.loads((tmp_path / "out" / f"cup_{k}.json").read_text()) for k in range(3)]
    assert [record["layout"]["x"] for record in records] == pytest.approx([-0.1, 0.0, 0.1])
    assert len({record["sample_seed"] for record in records}) == 1
    holes = [hole_mask(Layout(**record["layout"]).to_tensor(), 48, 0.2)[0].bool() for record in records]
    both = holes[0] & holes[1]
    assert both.any()
    assert torch.equal(painter.painted[0][:, both], painter.painted[1][:, both]), "one noise for all"
    generate("--interpolate", *map(str, paths), "--num-images", "2")
    records = [json.loads((tmp_path / "out" / f"cup_{k}.json").read_text()) for k in range(2)]
    assert [record["layout"]["x"] for record in records] == pytest.approx([-0.1, 0.1]), "not kept from the longer way"
    generate("--layout", str(paths[1]))
    assert Layout(**json.loads((tmp_path / "out" / "cup_1.json").read_text())["layout"]) == ends[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--fix-position", "900", "20"], r"--fix-position 900 20: outside cup.png, which is 64x48"),
        (["--box", "10", "10", "5", "20"], r"--box 10 10 5 20: no box in cup.png, 64x48"),
        (["--box", "10", "10", "50", "200"], "no box in cup.png"),
        (["--box", "10", "10", "15", "12"], "--box 10 10 15 12: its square is 13 pixels wide; 32 at least"),
        (["--heat-map", "{tmp}/glass.png"], "--heat-map .*glass.png: is transparent in places"),
        (["--heat-map", "{tmp}/square.png"], "aspect ratio"),
        (["--heat-map", "{tmp}/absent.png"], "absent.png: no such file"),
        (["--keep-out", "{tmp}/words.png"], "not a picture"),
        (["--layout", "{tmp}/bad.json"], "field b2 of the layout is missing"),
        (["--layout", "{tmp}/bad.json", "--layout-steps", "5"], "--layout-steps: --layout says where hands go"),
        (["--strength", "3"], "--strength: of which wish"),
        (["--layout", "{tmp}/bad.json", "--fix-size", "5"], "--layout says where hands go; leave out --fix-size"),
    ],
)
def test_generate_refuses_contradictions_before_it_paints(generate, tmp_path, words, reason):
    save(picture(), tmp_path / "in" / "cup.png")
    save(Image.new("L", (60, 60), 255), tmp_path / "square.png")
    Image.new("RGBA", (64, 48), (255, 255, 255, 9)).save(tmp_path / "glass.png")
    (tmp_path / "words.png").write_text("words")
    (tmp_path / "bad.json").write_text('{"a": 1, "x": 0, "y": 0, "b1": 1}')
    with pytest.raises(InputError, match=reason) as caught:
        generate(*(word.format(tmp=tmp_path) for word in words))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.png"))


def test_the_painter_s_settings_reach_it_and_the_records(generate, tmp_path):
    save(picture(64, 64), tmp_path / "in" / "cup.png")
    fusionnet = FusionNet.from_pretrained(shipped("mini") / "fusionnet")
    calls = []

    def settled(*words: str) -> RePaintSampler:
        pipeline = HOIPipeline(FakeMaskNet(), FusionNet.from_pretrained(shipped("mini") / "fusionnet"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FusionNet, "sample_holes", lambda self, obj, *_: calls.append(self.sampler) or obj)
            patch.setattr(HOIPipeline, "from_checkpoints", lambda *_: pipeline)
            generate(*words)
        return calls[-1]

    assert settled() == fusionnet.sampler == PRESETS["fast"]
    assert settled("--preset", "balanced") == PRESETS["balanced"]
    assert settled("--preset", "paper", "--painter-steps", "7") == replace(PRESETS["paper"], num_steps=7)
    asked = json.loads((tmp_path / "out" / "cup_0.json").read_text())["asked"]
    assert (asked["preset"], asked["painter_steps"]) == ("paper", 7)
    assert settled("--painter-steps", "3") == replace(PRESETS["fast"], num_steps=3)
    assert settled("--painter-scheduler", "unipc") == replace(PRESETS["fast"], scheduler="unipc")
    assert settled("--painter-attention", "0") == replace(PRESETS["fast"], attention_guidance=0)
    with pytest.raises(InputError, match=r"guidance_scale 2 .*painter-guidance.*context_dropout 0"):
        settled("--painter-guidance", "2")
