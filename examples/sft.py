"""Supervised fine-tuning on your own rows: a JSONL file with images, one trainer, a checkpoint that transformers loads.

    python examples/sft.py                # half a minute on one CPU core, no download
    python examples/sft.py --steps 5      # a few seconds, to see that it runs

The model is a tiny random Qwen3-VL built on the spot; a real one is `model="Qwen/Qwen3-VL-4B-Instruct"` without the
lines marked "tiny only".
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from posttrain.model.families import Family
from posttrain.model.tiny import build_tiny
from transformers import AutoModelForImageTextToText, AutoProcessor

from posttrain import SFTConfig, SFTTrainer

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 220), "yellow": (240, 210, 40)}
QUESTION = "Which colour is the shape?"


def draw_shape(draw: random.Random) -> tuple[Image.Image, str]:
    """A picture of 64 x 64 pixels and the colour of the one shape in it."""
    colour = draw.choice(list(COLOURS))
    picture = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(picture)
    x, y = draw.randrange(33), draw.randrange(33)
    draw.choice((pen.ellipse, pen.rectangle))((x, y, x + 30, y + 30), fill=COLOURS[colour])
    return picture, colour


def write_rows(folder: Path, num_rows: int) -> Path:
    """`train.jsonl` with its pictures beside it, in the conversational format: one <image> mark for each image."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            picture, colour = draw_shape(draw)
            picture.save(folder / "images" / f"{number}.png")
            row = {
                "messages": [
                    {"role": "user", "content": f"<image>{QUESTION}"},
                    {"role": "assistant", "content": colour},
                ],
                "images": [f"images/{number}.png"],
            }
            file.write(json.dumps(row) + "\n")
    return folder / "train.jsonl"


def ask(model_folder: Path, picture: Image.Image) -> str:
    """The answer of the trained checkpoint, by transformers alone."""
    processor = AutoProcessor.from_pretrained(model_folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(said, skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path, help="folder to write to; a temporary one unless told")
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp(prefix="posttrain-sft-"))
    torch.set_num_threads(1)  # tiny only: more threads cost more than they bring

    result = SFTTrainer(
        model=build_tiny(Family.QWEN3_VL, folder / "tiny"),
        train_dataset=write_rows(folder / "data", 512),
        args=SFTConfig(
            output_dir=str(folder / "run"),
            steps=options.steps,
            batch_size=8,
            learning_rate=5e-3,  # tiny only: a real checkpoint wants 1e-5, adapters 1e-4
            optimizer="muon",  # tiny only: for training from nothing
        ),
        model_section={"dtype": "float32"},  # tiny only
    ).train()

    metrics = [json.loads(line) for line in (folder / "run/stages/sft/metrics.jsonl").open(encoding="utf-8")]
    print(f"loss {metrics[0]['loss']:.2f} -> {metrics[-1]['loss']:.4f} nats a token in {result.steps} steps")
    picture, colour = draw_shape(random.Random("held out"))
    print(f"shown a {colour} shape, the trained model says {ask(result.model_dir, picture)!r}")
    print(f"model   {result.model_dir}\nreport  {result.report}")


if __name__ == "__main__":
    main()
