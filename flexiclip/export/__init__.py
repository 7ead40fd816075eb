"""Encoders out: a model's towers in the forms that others run, each checked against the model before it is put in place.

    flexiclip export image MODEL --format onnx --seqhw 5,8,15 --output image.onnx      image-5.onnx, image-8.onnx, image-15.onnx
    flexiclip export text  MODEL --format onnx --output text.onnx
    flexiclip export model MODEL --format open_clip --output FOLDER

encoders.py bakes one length into a tower; onnx.py and program.py write single encoders; open_clip.py, timm.py, big_vision.py and
transformers.py write whole models; agreement.py measures, card.py describes, run.py joins them. See docs/guides/export.md.
"""
