"""The miniature town: a small world with its own images, conditions and CLIP, which famix loads as a plugin.

scenes      canvas, layout -> backdrop, objects -> scene: a street with classes, instances and depth
conditions  effects -> conditions: the same street at night, in fog, rain and snow, at dusk; looks: effects of the web
datasets    writer, datasets: files in Cityscapes' format, rendered on first use
CLIP        captions -> crops, crop_files -> compact_clip, contrastive: training of the shipped weights
runs        experiment -> runner -> study: experiments, side by side, and studies of them; report: page of the demo
"""
