#!/usr/bin/env bash
# From a fresh clone to a trained and evaluated model, with real images and a frozen pretrained text encoder, at every length.
#
#   scripts/quickstart.sh                                       suits 2 CPU cores; uses a GPU if there is one
#   scripts/quickstart.sh run_dir=runs/short train.steps=50     arguments are overrides of the recipe
#
# It builds OpenMoji shards (CC BY-SA 4.0) in $FLEXICLIP_DATA (default: data/), trains recipes/openmoji_flexilit.yaml under
# DeepSpeed, and evaluates the model on concepts that it has not seen. On two cores the data takes half a minute, the training about
# seven minutes and the evaluation one minute; the set-up before depends on the network. A second run reuses the environment and the shards, and
# resumes the training if it is not complete.

EXTRAS=quickstart
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

export FLEXICLIP_DATA=${FLEXICLIP_DATA:-data}
run=runs/openmoji_flexilit
for override in "$@"; do
  case $override in run_dir=*) run=${override#run_dir=} ;; esac
done

say "1/3 data: OpenMoji rendered into shards, whole concepts held out"
flexiclip data openmoji --output "$FLEXICLIP_DATA/openmoji"

say "2/3 training: recipe openmoji_flexilit into $run"
flexiclip train openmoji_flexilit "$@"

say "3/3 evaluation: retrieval and zero-shot classification of unseen concepts at every length"
flexiclip eval "$run" --suite openmoji --output "$run/eval"

say "done"
printf '%s\n' "" "table   $run/eval/results.csv" "report  $run/eval/report.html" "model   $run/model"
find "$run/eval" -maxdepth 1 -name '*.png' -exec printf 'plot    %s\n' {} \;
printf '%s\n' "" "To go on in your own shell, paste these lines:"
printf '  cd %q\n  source %q\n' "$ROOT" "$VENV/bin/activate"
printf '  tensorboard --logdir %q\n  flexiclip eval %q --suite openmoji --seqhw 3,6\n' "$run" "$run"
