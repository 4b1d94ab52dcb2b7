"""Video files to frames, and frames to video files. Knows nothing of annotations.

container   opens a file and gives its packets
demuxing    what one pass over the packets tells
timestamps  mends timestamps that repeat or go back
info        what is known of a file before it is decoded: `VideoInfo`, `probe`
sampling    which frames of a video to take
decoding    those frames, in memory or one by one
cuts        whether a clip shows two scenes
damage      as many frames as possible of a damaged file
prefetch    work in a thread, ahead of whoever waits for it
disk_cache  decoded clips, kept on a disk
readers     clips for training, decoded by PyAV in processes or by DALI (`dali`)
encoding    frames to a file
images      folders of numbered pictures, which stand for a video
"""
