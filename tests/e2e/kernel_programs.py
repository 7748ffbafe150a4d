"""Kernels as people wrote them for the original API, in our own words from its facts, and some that misbehave."""

from __future__ import annotations

PING_PONG = """
import json
import redhareapiversion
from redhareapi import Kernel


class PingPong(Kernel):
    def on_kernel_start(self, kernel_context):
        Kernel.log_info("instance " + str(kernel_context.get_instance_id()))
        self.description = json.loads(kernel_context.get_model_description())

    def on_task_invoke(self, task_context):
        while task_context is not None:
            Kernel.log_debug("task " + str(task_context.get_id()))
            task_context.set_output_data("pong " + task_context.get_input_data())
            task_context = task_context.next()

    def on_kernel_shutdown(self):
        Kernel.log_info("bye")


if __name__ == "__main__":
    PingPong().run()
"""

# Says which of two pictures' brightnesses in weights.json a picture is nearer to.
CLASSIFICATION = """
import base64
import io
import json
import os
import redhareapiversion
from redhareapi import Kernel
from PIL import Image


class Brightness(Kernel):
    def on_kernel_start(self, kernel_context):
        description = json.loads(kernel_context.get_model_description())
        with open(os.path.join(description["model_path"], description["weight_path"])) as file:
            self.levels = json.load(file)
        self.attributes = {one["key"]: one["value"] for one in description["attributes"]}

    def on_task_invoke(self, task_context):
        while task_context is not None:
            try:
                task_context.set_output_data(json.dumps(self.answer(json.loads(task_context.get_input_data()))))
            except Exception as error:
                Kernel.log_error("task %s: %s" % (task_context.get_id(), error))
                task_context.set_output_data(json.dumps({"error": str(error)}))
            task_context = task_context.next()

    def answer(self, given):
        threshold = {one["key"]: one["value"] for one in given["attributes"]}.get("threshold", "0")
        samples = []
        for one in given["data_value"]:
            image = Image.open(io.BytesIO(base64.b64decode(one["value"]))).convert("L")
            level = sum(image.getdata()) / (image.width * image.height)
            near = {label: 1 / (1 + abs(level - known)) for label, known in self.levels.items()}
            scores = [{"label": label, "prob": value / sum(near.values())} for label, value in near.items()]
            samples.append({
                "sampleId": one["key"],
                "isImage": True,
                "results": [score for score in scores if score["prob"] >= float(threshold)],
            })
        return {"type": self.attributes["kind"], "classificationResults": samples}

    def on_kernel_shutdown(self):
        pass


Brightness().run()
"""

# Does what its input says.
MISBEHAVING = """
import os
import sys
import redhareapiversion
from redhareapi import Kernel


class Misbehaving(Kernel):
    def on_kernel_start(self, kernel_context):
        self.kept = []

    def on_task_invoke(self, task_context):
        while task_context is not None:
            what = task_context.get_input_data()
            if what == "raise":
                raise ValueError("the kernel says no")
            if what == "loop":
                while True:
                    pass
            if what == "exit":
                print("words before the end", flush=True)
                os._exit(7)
            if what == "leak":
                while True:
                    self.kept.append(b"x" * (1 << 24))
            if what == "junk":
                for number in range(3, 64):
                    try:
                        os.write(number, os.urandom(4096))
                    except OSError:
                        pass
            if what != "nothing":
                task_context.set_output_data("fine " + what)
            task_context = task_context.next()

    def on_kernel_shutdown(self):
        pass


Misbehaving().run()
"""

CANNOT_START = PING_PONG.replace(
    'Kernel.log_info("instance " + str(kernel_context.get_instance_id()))', 'raise RuntimeError("there are no weights")'
)
NO_KERNEL = "print('this program answers nothing')\n"
