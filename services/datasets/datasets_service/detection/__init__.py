"""Images with boxes: what Pascal VOC and COCO say, as one line of JSON an image. The images stay where they are."""
