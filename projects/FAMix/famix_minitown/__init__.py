"""The miniature town: a small world to see FAMix at work in, with its own images, conditions and CLIP.

scenes      layout -> backdrop, objects -> scene: a street with classes, instances and depth
conditions  effects -> conditions: the same street at night, in fog, rain and snow, at dusk
data sets   splits, writer, cache, datasets: files in Cityscapes' format, made when they are first asked for
CLIP        looks, captions -> crops -> contrastive: what tools/train_mini_clip.py trains; its weights are shipped
"""
