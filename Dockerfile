# An image with CUDA for workers. Nobody of this project has built or run it: there was no GPU to try it with.
#   docker build -t samdeblur .
#   docker run --gpus all --shm-size 8g -v /data:/data samdeblur samdeblur-prep run /data/GOPRO_Large /data/train.zarr --split train
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/samdeblur
ENV PATH=/opt/samdeblur/bin:$PATH PYTHONUNBUFFERED=1
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[hub,perceptual,tensorboard]' && rm -rf /src
WORKDIR /data
CMD ["samdeblur-prep", "doctor"]
