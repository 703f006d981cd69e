"""What a run leaves beside its shards: a picture, images for other programs, and models from saved pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sgm_sde as sg
from sgm_sde.cli import main
from sgm_sde.data.images import to_uint8
from sgm_sde.evaluation.bench import black_white
from sgm_sde.runs import distributed
from sgm_sde.runs.pictures import save_grid

RUN = ["sample", "--model", "digits", "-n", "11", "--batch", "4", "--nfe", "4", "--device", "cpu", "--quiet", "--out"]


def test_samples_as_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A grid of the first ones; all of them as 8-bit images, in both formats; how to load them; and the run goes on."""
    image = pytest.importorskip("PIL.Image")
    out = tmp_path / "run"
    assert main([*RUN, str(out), "--png"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        f"The first ones: {out / 'samples.png'}", f"As images: {out / 'png'}",
        f'Load them: sgm_sde.runs.distributed.load({str(out)!r})["x"]',
    ]  # fmt: skip
    assert main([*RUN, str(out), "--format", "npz"]) == 0
    assert "3 of them there before" in capsys.readouterr().out
    drawn = distributed.load(out)
    expected = to_uint8(drawn["x"], black_white(sg.load_model("digits"))).numpy()
    sheet = np.asarray(image.open(out / "samples.png"))
    assert sheet.shape == (2 * 9 - 1, 8 * 9 - 1)
    assert np.array_equal(sheet[9:17, 9:17], expected[9, 0])
    assert np.array_equal(np.asarray(image.open(out / "png" / "000010.png")), expected[10, 0])
    assert len(list((out / "png").iterdir())) == 11
    with np.load(out / "samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], expected.transpose(0, 2, 3, 1))
        assert np.array_equal(arrays["arr_1"], drawn["y"].numpy())


@pytest.mark.parametrize(("channels", "columns", "shape"), [(1, 4, (2 * 9 - 1, 4 * 6 - 1)), (3, 9, (8, 6 * 6 - 1, 3))])
def test_a_grid_of_samples(channels: int, columns: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Row by row, black to white over the range, white lines between; what is not finite is black."""
    image = pytest.importorskip("PIL.Image")
    x = torch.linspace(-2, 2, 6)[:, None, None, None].expand(6, channels, 8, 5).clone()
    x[1, :, 0, 0] = float("nan")
    sheet = np.asarray(image.open(save_grid(x, tmp_path / "grid.png", (-2, 2), columns)))
    assert sheet.shape == shape
    assert (sheet[:8, :5] == 0).all() and (sheet[:8, 5] == 255).all()
    assert (sheet[0, 6] == 0).all() and (sheet[1:8, 6:11] == 51).all()
    assert torch.equal(sg.pictures.to_uint8(x[:1], (-2, 2)), torch.zeros(1, channels, 8, 5, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        (torch.zeros(4, 2, 8, 8), {}, r"one or three channels, got \(4, 2, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), {}, r"got \(0, 1, 8, 8\)"),
        (torch.zeros(4, 8), {}, r"got \(4, 8\)"),
        (torch.zeros(4, 1, 8, 8), {"data_range": (1, -1)}, "data_range"),
        (torch.zeros(4, 1, 8, 8), {"columns": 0}, "columns"),
    ],
)
def test_grids_of_what_is_none(x: torch.Tensor, options: dict[str, object], text: str, tmp_path: Path) -> None:
    """Refused in words."""
    pytest.importorskip("PIL.Image")
    with pytest.raises(ValueError, match=text):
        save_grid(x, tmp_path / "grid.png", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "grid.png").exists()


def test_a_grid_needs_numbers(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    with pytest.raises(TypeError, match=r"x must be a floating tensor .* got one on the device meta"):
        save_grid(torch.zeros(4, 1, 8, 8, device="meta"), tmp_path / "grid.png")


def test_images_of_what_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before the work is done."""
    argv = [
        "sample",
        "--model",
        "tests.forks:mixture",
        "-n",
        "2",
        "--nfe",
        "3",
        "--out",
        str(tmp_path / "run"),
        "--png",
    ]
    with pytest.raises(SystemExit):
        main(argv)
    assert "--format png is for images of one or three channels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_guidance_from_the_command_line(tmp_path: Path) -> None:
    """The samples of classifier-free guidance; another scale is another run."""
    main([*RUN, str(tmp_path / "run"), "--guidance", "2"])
    model = sg.load_model("digits")
    guided = sg.guidance.ClassifierFree(model.score, 2.0)
    expected = sg.sample(
        guided,
        model.sde,
        (4, 1, 8, 8),
        nfe=4,
        seed=0,
        model_kwargs={"y": torch.arange(4)},
        execution=sg.Execution(device="cpu"),
    )
    assert torch.equal(distributed.load(tmp_path / "run")["x"][:4], expected.x)
    with pytest.raises(SystemExit):
        main([*RUN, str(tmp_path / "run"), "--guidance", "3"])


@pytest.mark.parametrize("classes", [None, 4])
def test_a_saved_pipeline(classes: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is a model: shape, classes, schedule and prediction are those that it was saved with."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
            num_class_embeds=classes,
        )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(tmp_path / "saved")
    model = sg.load_model(str(tmp_path / "saved"))
    assert (model.name, model.shape, model.n_classes, model.n_levels) == ("saved", (3, 8, 8), classes, 256)
    assert model.score.prediction == "v"
    argv = [
        "sample",
        "--model",
        str(tmp_path / "saved"),
        "-n",
        "3",
        "--nfe",
        "3",
        "--device",
        "cpu",
        "--quiet",
        "--out",
    ]
    assert main([*argv, str(tmp_path / "run")]) == 0
    assert distributed.load(tmp_path / "run")["x"].shape == (3, 3, 8, 8)
    index = tmp_path / "saved" / "model_index.json"
    index.write_text(index.read_text().replace('"unet"', '"vae"'))
    with pytest.raises(ValueError, match="is a pipeline of scheduler, vae; one of a unet or transformer"):
        sg.load_model(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("name", "error", "shown"),
    [
        (3, TypeError, "path must be the path of a picture, got 3"),
        ("", ValueError, "must end in .png"),
        ("a.jpg", ValueError, "must end in .png, got .*a.jpg"),
        ("missing/a.png", FileNotFoundError, "no folder .*missing to write a.png to"),
    ],
)
def test_where_no_picture_can_be_written(name: Any, error: type[Exception], shown: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    path = tmp_path / name if isinstance(name, str) and name else name
    with pytest.raises(error, match=shown):
        sg.pictures.save_grid(torch.zeros(2, 1, 4, 4), path)
