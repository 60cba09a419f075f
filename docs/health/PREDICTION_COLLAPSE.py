import torch
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import BCELoss

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
nn.init.constant_(model[0].bias, -9.0)  # no rectifier ever opens
criterion = BCELoss()
optimizer = torch.optim.Adam(model.parameters())
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(80):
    images = torch.randn(4, 1, 16, 16)
    masks = (images > 1).float()
    loss = criterion(model(images), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
