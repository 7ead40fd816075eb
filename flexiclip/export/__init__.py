"""Exports of a model's towers for other software, each compared with the model before it is put in place.

    flexiclip export image MODEL --format onnx --seqhw 5,8,15 --output image.onnx      image-5.onnx, image-8.onnx, image-15.onnx
    flexiclip export text  MODEL --format onnx --output text.onnx
    flexiclip export model MODEL --format open_clip --output FOLDER

encoders.py fixes a tower to one length. onnx.py and program.py write single encoders, and encoder_facts.py has the facts
that they carry. The writers of whole models are in formats/. agreement.py measures how close an export is to the model,
and card.py describes it. write_encoder.py and write_model.py put these steps together. docs/guides/export.md is the guide
for users.
"""
