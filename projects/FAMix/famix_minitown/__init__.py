"""Miniature town: a small rendered world with its own images, conditions and CLIP, which famix loads as a plugin.

rendering/          canvas -> street -> scene: a street with classes, instances and depth; conditions: the same street at
                    night, in fog, rain and snow, at dusk; looks: effects seen in images on the web
writer, datasets    files in Cityscapes' format, rendered on first use
clip/               captions -> crops -> compact_clip, contrastive: training of the shipped weights
runs/               experiment -> runner: experiments run in parallel; study: their records; report: page for the demo
"""
