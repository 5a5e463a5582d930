# docker build -t quintet . && docker run --rm quintet          runs `make train`
# docker run --rm --gpus all -v $PWD/data:/quintet/data -v $PWD/logs:/quintet/logs quintet \
#   make train ARGS="model=wavenet data=vctk trainer=gpu"
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends make gcc g++ git libsndfile1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /quintet
COPY requirements.txt pyproject.toml Makefile README.md LICENSE ./
COPY src src
RUN make .venv/.installed
COPY . .
CMD ["make", "train"]
