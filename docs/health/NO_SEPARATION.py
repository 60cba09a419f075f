import torch
from torch import nn
from torch.nn import functional as F

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
model, criterion = nn.Linear(8, 4), TripletLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(250):
    labels = torch.randint(4, (16,))  # labels that do not belong to the inputs
    loss = criterion(F.normalize(model(torch.randn(16, 8))), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
